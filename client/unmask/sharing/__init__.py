"""Caches as folders of files, and generations from trainers' files.

    from unmask.sharing import export_to, import_from

    export_to(client, "export", format="parquet")
    import_from(other, "export")

Parquet needs pyarrow (extra `parquet`), which is loaded where it is used.
"""

from __future__ import annotations

from unmask.sharing.exporting import export_to
from unmask.sharing.importing import Imported, import_from
from unmask.sharing.trainers import TrainerImport, import_trainer

__all__ = ["Imported", "TrainerImport", "export_to", "import_from", "import_trainer"]
