"""Self-contained HTML pages from Jinja2 templates, which escape whatever they are filled with."""
