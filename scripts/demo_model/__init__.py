"""Grammar, corpus and training of the embedded demo model; `cosmic_tl/demo` has what they make."""
