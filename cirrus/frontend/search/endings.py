"""What is to do when a search has ended, or when nobody holds it any more."""

from __future__ import annotations

from cirrus.client_backend.base import Backend
from cirrus.client_backend.runs import run_url
from cirrus.client_backend.search_folder import DATA_FOLDER, SearchFolder, TrialStatus
from cirrus.frontend.scratch import remove_below
from cirrus.frontend.search.driver import Driver
from cirrus.metrics import RunState


class Farewell:
    """What is to do when a driver has ended: this holds on to neither the search nor its data.

    Args:
        folder: The search folder.
        backend: Whose shared processes end.
    """

    def __init__(self, folder: SearchFolder, backend: Backend) -> None:
        self._folder = folder
        self._backend = backend

    def __call__(self) -> None:
        """End what was shared, and remove the data of a search that nobody will go on with."""
        self._backend.close_shared()
        found = self._folder.read_state()
        if found is None or found[0].state is not RunState.FINISHED:
            return
        # A trial that somebody killed may be gone on with.
        if not any(trial.status is TrialStatus.KILLED for trial in found[0].trials):
            self._folder.store.delete_prefix(DATA_FOLDER)


def let_go(driver: Driver, folder: SearchFolder | None, root: str) -> None:
    """End a search that nobody holds any more, and remove one whose folders are temporary."""
    if folder is None:
        driver.close_soon()
        return
    driver.close()
    for trial in driver.state.trials:
        for run_id in trial.runs:
            remove_below(run_url(root, run_id))
    remove_below(folder.url)
