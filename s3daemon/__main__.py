"""`python -m s3daemon`."""

from s3daemon.cli import main

if __name__ == "__main__":
    main()
