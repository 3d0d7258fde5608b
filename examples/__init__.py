"""Apps to read and to copy from; installed with the library, because `safeagent-sa demo` runs them."""
