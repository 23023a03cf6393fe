package service

import "time"

// Violation is a use of a resource that is worth a word.
type Violation uint8

// The violations.
const (
	MemoryWarning  Violation = iota // memory above its warning level of memory_max
	CPUWarning                      // CPU time above its warning level of cpu_percent
	MemoryExceeded                  // memory_max was run into
	CPUExceeded                     // held back at cpu_percent
	PidsExceeded                    // forks were refused at pids_max
	MemoryPressed                   // held up for memory for longer than its level
	CPUPressed                      // likewise for the CPU
	IOPressed                       // likewise for disks
	Livelock                        // throttled at memory_high so that it gets nothing else done
	NumViolations
)

var violationNames = [NumViolations]string{
	"memory-warning", "cpu-warning", "memory-exceeded", "cpu-exceeded", "pids-exceeded",
	"memory-pressure", "cpu-pressure", "io-pressure", "livelock",
}

func (v Violation) String() string { return violationNames[v] }

// PressedBy is the violation that is pressure for p.
func PressedBy(p PressureOf) Violation { return MemoryPressed + Violation(p) }

// Violations tells since when each lasts, zero for those that do not.
type Violations [NumViolations]time.Time

// Names are those that last.
func (v Violations) Names() (names []string) {
	for i, since := range v {
		if !since.IsZero() {
			names = append(names, Violation(i).String())
		}
	}
	return names
}

// Step is what is done about a service that uses too much.
type Step uint8

// The steps, each of which includes those before it.
const (
	StepWarn     Step = iota // it is told
	StepThrottle             // it gets no more than its warning level
	StepStop                 // it is ended, and begun again if its policy says so
	numSteps
)

var stepNames = [numSteps]string{"warn", "throttle", "stop"}

func (s Step) String() string { return stepNames[s] }

// OnLivelock is what is done about a livelock.
type OnLivelock uint8

// The answers.
const (
	LivelockRaise OnLivelock = iota // memory_high is lifted, so that memory_max decides; without one it is ended
	LivelockStop                    // it is ended, and begun again if its policy says so
	LivelockWarn                    // it is told
	numOnLivelocks
)

var livelockNames = [numOnLivelocks]string{"raise", "stop", "warn"}

func (l OnLivelock) String() string { return livelockNames[l] }

// Ladder says how far the agent goes with a service that stays above a warning level.
type Ladder struct {
	Memory, CPU   Step
	ThrottleAfter time.Duration // that it was above all the time
	StopAfter     time.Duration // likewise, throttled or not
	Livelock      OnLivelock
}

// The range of a Ladder's times.
const minLadder, maxLadder = time.Second, 24 * time.Hour

func (l Ladder) validate(faults *faultList) {
	faults.duration("enforcement.throttle_after", l.ThrottleAfter, minLadder, maxLadder)
	faults.duration("enforcement.stop_after", l.StopAfter, minLadder, maxLadder)
	if max(l.Memory, l.CPU) == StepStop && l.StopAfter <= l.ThrottleAfter {
		faults.add("enforcement.stop_after", "%v is not after throttle_after, %v", l.StopAfter, l.ThrottleAfter)
	}
}
