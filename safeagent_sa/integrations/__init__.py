"""One framework, one module, one extra; nothing here is imported by the rest."""
