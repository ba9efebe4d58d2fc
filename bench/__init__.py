"""Speed and memory beside peers; `python -m bench` runs everything."""
