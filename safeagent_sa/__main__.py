"""`python -m safeagent_sa`: the same as `safeagent-sa`."""

from .cli import main


if __name__ == "__main__":
    main()
