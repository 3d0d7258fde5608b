"""Apps to read and copy from; they are installed because `safeagent-sa demo` runs one of them."""
