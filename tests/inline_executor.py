"""An executor that runs everything at once, in the test's own process: no workers to start."""

from concurrent.futures import Executor, Future


class Here(Executor):
    """Runs what is submitted before ``submit`` returns."""

    def submit(self, function, *arguments):
        future = Future()
        try:
            future.set_result(function(*arguments))
        except BaseException as error:
            future.set_exception(error)
        return future
