from shared import lean

lean.load()

from api.server import main  # noqa: E402

main()
