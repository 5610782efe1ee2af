from shared import lean

lean.load("httpx")

from worker.process import main  # noqa: E402

main()
