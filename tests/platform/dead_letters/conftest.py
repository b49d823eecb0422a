"""As for bulk operations, and jobs that are given up."""

from tests.platform.api.conftest import app as app
from tests.platform.api.conftest import caller as caller
from tests.platform.api.conftest import deployment as deployment
from tests.platform.api.conftest import make_caller as make_caller
from tests.platform.api.conftest import plain_logs as plain_logs
from tests.platform.api.conftest import worker as worker
from tests.platform.bulk.conftest import bench as bench
