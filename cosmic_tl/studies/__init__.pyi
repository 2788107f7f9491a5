from .collected import (
    load_study as load_study,
)
from .reading import (
    read_study as read_study,
)
from .running import (
    run_study as run_study,
)
from .study import (
    Case as Case,
    PromptSet as PromptSet,
    Published as Published,
    SettingsEntry as SettingsEntry,
    Study as Study,
    StudyModel as StudyModel,
)
