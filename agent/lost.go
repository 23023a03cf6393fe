package agent

import (
	"time"

	"github.com/gladsheim/gladsheim/agent/service"
	"github.com/gladsheim/gladsheim/agent/skirnir"
)

// recordDamaged is why nobody knows how an instance ended whose record was damaged.
const recordDamaged = "record_damaged"

// tellLostEnd records, where the exit records of a service were damaged, that the
// latest instance has ended, and that how is not known any more: history does not
// say then that it never did.
func (a *Agent) tellLostEnd(name service.Name, r skirnir.Actual) {
	ended := r.Machine.Incarnation
	if r.Machine.State.Alive() && ended > 0 {
		ended--
	}
	if ended == 0 {
		return // since the boot none has ended, and of those before nothing is known
	}
	exits := []service.ExitRecord{{
		Incarnation: ended, Exit: service.Exit{Unknown: recordDamaged}, Verdict: service.VerdictUnknown,
		Started: r.Started, Ended: time.Now(), // when that was noticed
		Message: "it ended, and the record of how was damaged; it and those before it were set aside",
	}}
	if err := a.store.SaveExits(name, exits); err != nil {
		a.cfg.Log.Error("cannot record that exit records were lost", "service", name, "error", err)
		return
	}
	a.exits[name] = exits
}
