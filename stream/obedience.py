"""The part of the loop that obeys commands: each has a boundary of its own in the journal of every lane.

Order: boundary journalled -> ownership confirmed -> applied -> acknowledged; when all lanes of a partition
have obeyed, a checkpoint. The boundary is an entry without queries that names the command's place in the
control log. Whoever repeats the lane's batches reads the command there and obeys it between the same two.
"""

from __future__ import annotations

from core.checkpoints import JournalEntry
from core.commands import STANDING, Command, Obeyed, Result
from core.protocols import StateStore
from stream.events import Commanded
from stream.intake import Intake
from stream.lanes import Lane
from stream.obeying import obey
from stream.ownership import Owned, Ownership
from stream.retrieval import Retrieval
from stream.sending import Sending

TO_COME = "no lane here yet that it is for: those to come begin so"
NOTHING = "no lane here that it is for"
AWAY = "lanes here that it is for are put away: each obeys before its next answer"
UNKNOWN = "there is no such lane: lanes are named partition:modality, as answers name theirs"
APART = "lanes are not kept apart by tenant here: batch.per_tenant_lanes is false"


class Obedience:
    """Obeys what was read of the control topic, lane by lane."""

    def __init__(
        self, ours: Ownership, store: StateStore, sending: Sending, intake: Intake, retrieval: Retrieval,
        per_tenant: bool,
    ) -> None:  # fmt: skip
        self._ours, self._store, self._sending, self._intake = ours, store, sending, intake
        self._retrieval, self._per_tenant = retrieval, per_tenant

    def obey(self, owned: Owned, lane: Lane, drain: bool) -> None:
        """Repeats what the journal has of commands before the lane's next batch; then obeys what is new."""
        commands = self._ours.commands
        while lane.planned and not lane.planned[0].offsets:
            entry = lane.planned[0]
            if not commands.reached(entry.control_offset, drain):
                return
            lane.planned.popleft()
            command = commands.get(entry.control_offset - 1)
            if isinstance(command, Command):
                self._apply(owned, lane, command, entry.gallery, True)
            lane.obeyed(entry.control_offset)
        if not lane.planned:
            for command in lane.due(commands):
                gallery = ""
                if command.action == "swap-gallery":
                    gallery = self._retrieval.use(command.gallery)
                self._store.journal(self._boundary(owned, lane, command, gallery))
                self._ours.confirm(owned)
                self._apply(owned, lane, command, gallery, False)
                lane.obeyed(command.at.offset + 1)

    def handled(self, owned: Owned) -> bool:
        """Moves on over commands that all lanes of a partition have obeyed; True where one is to be saved."""
        commands, before = self._ours.commands, owned.control_offset
        if before >= commands.end:
            return False
        self._ours.meet(owned)
        for one in commands.since(before):
            if isinstance(one, Command):
                for lane in self._ours.called(owned, one):
                    self.obey(owned, lane, False)
                lanes = [lane for lane in owned.lanes.values() if one.concerns(lane.name)]
                if any(lane.planned or lane.obeys <= one.at.offset for lane in lanes):
                    break
                if not lanes:
                    self._nobody(owned, one)
                owned.control_offset = one.at.offset + 1
            else:
                if owned.partition[1] == 0:  # one of the workers says it
                    self._intake.refuse(one)
                    self._sending.refused(owned.partition, one)
                owned.control_offset = one.record.at.offset + 1
        # Where nothing was read yet the place in the log is not known, and there is nothing to save.
        return owned.control_offset > before and owned.position is not None

    def _boundary(self, owned: Owned, lane: Lane, command: Command, gallery: str) -> JournalEntry:
        steering = lane.session.steering
        return JournalEntry(
            *owned.partition, lane.name, lane.next_seq, (), lane.session.state_hash(),
            generation=self._ours.generation, gallery=gallery,
            label_offsets={} if steering is None else dict(steering.offsets),
            control_offset=command.at.offset + 1,
        )  # fmt: skip

    def _apply(self, owned: Owned, lane: Lane, command: Command, gallery: str, repeated: bool) -> None:
        reason = obey(lane, command, self._ours.base, gallery)
        result: Result = "refused" if reason else "applied"
        state = lane.session.state_hash()
        lanes = sum(command.concerns(name) for name in owned.lanes)
        self._say(owned, Obeyed(command, lane.name, lane.next_seq, result, reason, state, repeated), lanes)
        owned.since_checkpoint += 1

    def _nobody(self, owned: Owned, command: Command) -> None:
        """A partition without a lane that a command is for answers all the same."""
        number, named = owned.partition[1], command.lane.partition(":")[0]
        if command.lane and named != str(number) and (number or named.isdecimal()):
            return  # another partition's to say
        reason = TO_COME if command.action in STANDING else NOTHING
        if any(command.concerns(name) for name in owned.records):
            reason = AWAY
        result: Result = "applied"
        if command.lane:
            reason, result = UNKNOWN, "refused"
        elif command.tenant and not self._per_tenant:
            reason, result = APART, "refused"
        self._say(owned, Obeyed(command, "", 0, result, reason, "", False), 1)

    def _say(self, owned: Owned, obeyed: Obeyed, lanes: int) -> None:
        self._sending.acknowledged(owned.partition, obeyed, lanes)
        self._ours.tell(Commanded(obeyed))
