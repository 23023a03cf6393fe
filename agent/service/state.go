package service

// State is where the machine of one service stands.
type State uint8

// The states.
const (
	Stopped   State = iota // nothing runs, and nobody wants it to
	Adopting               // an earlier agent left it; we are finding out whether it lives
	Launching              // the backend is bringing its process to life
	Starting               // its process runs and is not ready yet
	Running                // ready
	Stopping               // told to end, or being killed
	Clearing               // the main process is gone; what is left of it is being removed
	Backoff                // it failed, and waits for its next attempt
	Crashed                // it failed, and nothing will be tried by itself
	Held                   // ended to save the battery, and comes back by itself
	Waiting                // it shall run, and what it needs for that is not there yet
	numStates
)

var stateNames = [numStates]string{
	"stopped", "adopting", "launching", "starting", "running", "stopping", "clearing", "backoff", "crashed", "held", "waiting",
}

func (s State) String() string { return stateNames[s] }

// Alive tells whether processes of the service may exist in this state.
func (s State) Alive() bool {
	return s != Stopped && s != Backoff && s != Crashed && s != Held && s != Waiting
}

// Public is one of the seven states that the wire contract knows.
type Public uint8

// The seven, numbered as on the wire.
const (
	PublicUnknown Public = iota
	PublicStarting
	PublicRunning
	PublicStopping
	PublicStopped
	PublicCrashed
	PublicRestarting
	NumPublic
)

var publicNames = [NumPublic]string{"unknown", "starting", "running", "stopping", "stopped", "crashed", "restarting"}

func (p Public) String() string { return publicNames[p] }

// Public tells which of the seven states clients see.
func (m Machine) Public() Public {
	switch m.State {
	case Launching, Starting:
		return PublicStarting
	case Running:
		return PublicRunning
	case Stopping, Clearing:
		if m.Again {
			return PublicRestarting
		}
		return PublicStopping
	case Stopped, Held:
		return PublicStopped
	case Crashed:
		return PublicCrashed
	case Backoff:
		return PublicRestarting
	case Waiting:
		if m.Asked {
			return PublicStarting
		}
		return PublicRestarting
	}
	return PublicUnknown
}
