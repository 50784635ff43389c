"""Plans that several calls share: what get_scheduler_metadata's tensor carries."""

import torch


class Plan:
    """What get_scheduler_metadata hangs on the tensor that it returns: scratch memory whose plan the calls share."""

    def __init__(self, expected: dict, kernel: int, scratch: torch.Tensor):
        self._expected = expected  # fields of AttentionParams
        self._kernel = kernel  # whose scratch it is
        self._scratch = scratch
        self._capture = 0  # in which the scratch was made; its zeros are there when that graph is replayed
        self._planned = None

    def scratch_for(self, call, memory, stream: int) -> tuple[torch.Tensor, bool]:
        """The memory, and whether it holds the plan already. A plan that one graph has captured serves that capture."""
        for name, expected in self._expected.items():
            found = getattr(call.params, name)
            if found != expected:
                raise ValueError(f"scheduler_metadata: made for {name} {expected}, found {found} in this call")
        stays = self._kernel == call.kernel_number and self._capture in (0, memory.capture)
        if not stays or self._scratch.numel() < call.scratch_bytes:
            self._kernel, self._capture = call.kernel_number, memory.capture
            self._scratch = torch.zeros(call.scratch_bytes, dtype=torch.uint8, device=call.device)
        planned, self._planned = self._planned, (call, memory.capture, stream)
        return self._scratch, planned == self._planned


def plan_of(scheduler_metadata: torch.Tensor) -> Plan:
    plan = getattr(scheduler_metadata, "onepass_plan", None)
    if plan is None:
        raise ValueError(
            "scheduler_metadata: expected the very tensor that onepass's get_scheduler_metadata returned, found another"
        )
    return plan
