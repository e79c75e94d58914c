"""Serving on Ray Serve: the splitter, the variants, the event log, the API and the command line."""
