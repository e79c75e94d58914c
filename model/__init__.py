"""OneRec-V2: a lazy-decoder generative recommender over semantic ids."""
