"""FP8 post-training quantisation of OneRec-V2."""
