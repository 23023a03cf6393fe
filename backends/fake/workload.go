package fake

import (
	"strconv"
	"syscall"
	"time"

	"github.com/gladsheim/gladsheim/agent/service"
)

// Workload is the script of a launch of the program test/workload, a Program
// for Config: the scripted process behaves as the mode says that is named in
// the fourth word of the command line ("/workload -t TOKEN MODE ARG..."). It
// panics at a mode that a script can not play.
func Workload(l service.Launch) Script {
	mode, args := l.Spec.Exec[3], l.Spec.Exec[4:]
	number := func(i int) int {
		n, err := strconv.Atoi(args[i])
		if err != nil {
			panic(err)
		}
		return n
	}
	after := func(i int) time.Duration {
		if i >= len(args) {
			return 0
		}
		d, err := time.ParseDuration(args[i])
		if err != nil {
			panic(err)
		}
		return d
	}
	switch mode {
	case "sleep", "mark":
		return Script{}
	case "ignore-term":
		return Script{Stubborn: true}
	case "exit":
		return Script{End: &End{After: after(1), Exit: service.Exit{Code: number(0)}}}
	case "signal":
		return Script{End: &End{Exit: service.Exit{Signal: syscall.Signal(number(0))}}}
	case "fork":
		return Script{Children: number(0)}
	case "tree":
		return Script{Children: 1<<(number(0)+1) - 2, Stubborn: true}
	case "double-fork":
		if len(args) == 1 {
			return Script{Children: 1}
		}
		return Script{Children: 1, End: &End{}}
	case "hand-stdout":
		return Script{Children: 1, End: &End{After: after(0)}}
	case "hog-cpu":
		return Script{Usage: func(age time.Duration) service.Usage {
			return service.Usage{Source: "cgroup", Memory: 1 << 20, CPUTime: age * time.Duration(number(0))}
		}}
	}
	panic("fake: not a mode that a script can play: " + mode)
}
