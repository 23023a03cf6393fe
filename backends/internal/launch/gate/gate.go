// Package gate is what a child does between fork and exec. The agent executes
// itself once more, marked by its environment; this package finds the mark
// before main and before nearly every other package is initialised, and then
// the process is a gate: it reads a Plan from file descriptor 3, makes itself
// what the Plan says, waits for the word to go, and executes the program. If
// the agent leaves or dies first, so does the gate, and the program never runs.
//
// Every program that imports this package can be its own gate. It imports
// little besides syscall, so that the Go runtime initialises it right after syscall and
// a gate costs no more than the runtime's start; for the same reason it does
// nothing through os, fmt or encoding/binary.
package gate

import "syscall"

// Mark and OneProcessor are the whole environment of a gate. Nothing else in
// the environment may stand beside them, so that no inherited variable turns an
// agent into a gate.
const Mark = "GLADSHEIM_GATE=1"

// OneProcessor keeps the Go runtime from starting threads while the gate is at
// work: where the cgroup allows no more of them, it would end the process.
const OneProcessor = "GOMAXPROCS=1"

// FD is where a gate talks with the agent: a stream socket.
const FD = 3

// Go is the byte that opens a gate.
const Go = 'g'

// An answer of a gate is AnswerSize bytes: the step and the errno, little
// endian. StepWait with errno 0 says that it waits for the word to go, and needs
// no more memory or threads than it has. StepExecute with errno 0 says that
// execve is the next thing it does; if the socket then ends without another
// answer, it has happened.
const AnswerSize = 5

// This initialiser is the only one that may exist: everywhere else work begins
// in main. A gate must begin before the initialisers of large packages have
// run, and never reaches main.
func init() {
	if env := syscall.Environ(); len(env) == 2 && env[0] == Mark && env[1] == OneProcessor {
		run()
	}
}

// Step is what a gate was doing when it failed.
type Step uint8

// The steps, in their order.
const (
	StepRead Step = iota
	StepSignals
	StepScheduling
	StepOOMScore
	StepRlimits
	StepNoFile
	StepWait
	StepCapabilities
	StepGroups
	StepGroup
	StepUser
	StepDirectory
	StepNoNewPrivs
	StepCloseFiles
	StepExecute
	numSteps
)

var stepNames = [numSteps]string{
	"read the plan", "reset signals", "set the scheduling", "set oom_score_adj", "set resource limits", "set the limit of open files",
	"wait for the word", "drop capabilities", "set supplementary groups", "change group", "change user", "change directory",
	"set no_new_privs", "close inherited files", "execute",
}

func (s Step) String() string {
	if s < numSteps {
		return stepNames[s]
	}
	return "unknown step"
}

// Answer is what a gate says.
type Answer struct {
	Step  Step
	Errno syscall.Errno // 0: it is about to do the step
}

// ReadAnswers takes the answers from the start of data and returns them with
// what is left over of an incomplete one.
func ReadAnswers(data []byte) (answers []Answer, rest []byte) {
	for len(data) >= AnswerSize {
		answers = append(answers, Answer{Step(data[0]), syscall.Errno(getUint32(data[1:]))})
		data = data[AnswerSize:]
	}
	return answers, data
}
