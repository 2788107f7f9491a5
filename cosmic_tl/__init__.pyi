from . import (
    check as check,
)
from . import (
    data as data,
)
from . import (
    engine as engine,
)
from . import (
    experiments as experiments,
)
from . import (
    export as export,
)
from . import (
    figures as figures,
)
from . import (
    interventions as interventions,
)
from . import (
    judges as judges,
)
from . import (
    metrics as metrics,
)
from . import (
    model as model,
)
from . import (
    selection as selection,
)
from . import (
    suffixes as suffixes,
)

__version__: str
