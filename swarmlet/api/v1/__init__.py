"""Generated from proto/ by tools/generate_api.py; not edited by hand."""
