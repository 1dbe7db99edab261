"""`python3 -m sollol.setup_llama_cpp --all|--clone|--build|--start`: the same as `sollol setup-llama-cpp`."""

from .cli.app import app


def main() -> None:
    """Run the command with the arguments of this process."""
    import sys

    app(["setup-llama-cpp", *sys.argv[1:]], prog_name="sollol")


if __name__ == "__main__":
    main()
