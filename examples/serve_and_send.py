"""A service in a process of its own, and a device that delivers to it through a spool.

    python examples/serve_and_send.py [IMAGE] [BUNDLE]

`edge-send IMAGE --url URL` does the same, and lives through a network that fails.
"""

import subprocess
import sys
import tempfile

from runtime import EdgeEncoder
from runtime.delivery.outcomes import Encoded
from runtime.delivery.route import Endpoint
from runtime.delivery.sender import deliver
from runtime.delivery.spool import Spool

IMAGE = sys.argv[1] if len(sys.argv) > 1 else "docs/demo/golf_ball.jpg"
BUNDLE = sys.argv[2] if len(sys.argv) > 2 else "bundles/ours_n4"


def main() -> int:
    command = [
        sys.executable,
        "-m",
        "runtime.cli.cloud_serve",
        "--port",
        "0",
        "--bundle",
        BUNDLE,
        "--log",
        "failures",
    ]
    with (
        subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as service,
        tempfile.TemporaryDirectory() as place,
    ):
        try:
            assert service.stdout
            url = (
                service.stdout.readline().removeprefix("listening on ").strip()
            )  # its one line, once it serves
            encoded = Encoded(IMAGE, EdgeEncoder(BUNDLE).encode(IMAGE))
            with Spool(f"{place}/spool", 1 << 20) as spool:
                # A feature file is on the disk before it is posted, and leaves it once its result is.
                for outcome in deliver(spool, Endpoint(url), [encoded]):
                    best = outcome.result["classes"][0] if outcome.result else {}
                    print(
                        f"{outcome.image}: {outcome.status}, {best.get('label')} {best.get('probability', 0):.1%}"
                    )
        finally:
            service.terminate()  # it answers what it has admitted, and stops
    return 0


if __name__ == "__main__":
    sys.exit(main())
