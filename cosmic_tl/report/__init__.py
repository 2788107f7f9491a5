"""One self-contained HTML page a run. Whatever is put into a page is escaped, unless it is `Markup` already."""
