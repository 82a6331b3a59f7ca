"""Starts the service in another process and delivers an image to it through a spool.

    python examples/serve_and_send.py [IMAGE] [BUNDLE]

`edge-send IMAGE --url URL` delivers in the same way.
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
    options = ["--port=0", f"--bundle={BUNDLE}", "--log=failures"]
    command = [sys.executable, "-m", "runtime.cli.cloud_serve", *options]
    with (
        subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as service,
        tempfile.TemporaryDirectory() as place,
    ):
        try:
            assert service.stdout
            # The service prints this line when it is ready.
            url = service.stdout.readline().removeprefix("listening on ").strip()
            encoded = Encoded(IMAGE, EdgeEncoder(BUNDLE).encode(IMAGE))
            with Spool(f"{place}/spool", 1 << 20) as spool:
                # A feature file is on disk before it is posted, until its result is on disk.
                for outcome in deliver(spool, Endpoint(url), [encoded]):
                    best = outcome.result["classes"][0] if outcome.result else {}
                    answer = f"{best.get('label')} {best.get('probability', 0):.1%}"
                    print(f"{outcome.image}: {outcome.status}, {answer}")
        finally:
            service.terminate()  # it answers admitted requests, then stops
    return 0


if __name__ == "__main__":
    sys.exit(main())
