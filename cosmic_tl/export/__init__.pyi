from .checking import (
    ExportCheck as ExportCheck,
    check_export as check_export,
)
from .checkpoint import (
    save_checkpoint as save_checkpoint,
)
from .exporting import (
    Exported as Exported,
    export_edit as export_edit,
)
from .names import (
    format_table as format_table,
)
from .steering_vectors import (
    to_steering_vector as to_steering_vector,
)
