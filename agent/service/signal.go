package service

import (
	"fmt"
	"strconv"
	"strings"
	"syscall"
)

// signalNames are the signals that signal(7) gives a name, for Linux.
var signalNames = map[string]syscall.Signal{
	"SIGHUP": 1, "SIGINT": 2, "SIGQUIT": 3, "SIGILL": 4, "SIGTRAP": 5, "SIGABRT": 6, "SIGBUS": 7, "SIGFPE": 8,
	"SIGKILL": 9, "SIGUSR1": 10, "SIGSEGV": 11, "SIGUSR2": 12, "SIGPIPE": 13, "SIGALRM": 14, "SIGTERM": 15,
	"SIGSTKFLT": 16, "SIGCHLD": 17, "SIGCONT": 18, "SIGSTOP": 19, "SIGTSTP": 20, "SIGTTIN": 21, "SIGTTOU": 22,
	"SIGURG": 23, "SIGXCPU": 24, "SIGXFSZ": 25, "SIGVTALRM": 26, "SIGPROF": 27, "SIGWINCH": 28, "SIGIO": 29,
	"SIGPWR": 30, "SIGSYS": 31,
}

// ParseSignal reads SIGTERM, TERM or 15.
func ParseSignal(text string) (syscall.Signal, error) {
	if n, err := strconv.Atoi(text); err == nil {
		if n < 1 || n > 64 {
			return 0, fmt.Errorf("%q is not a signal; numbers are 1 to 64", text)
		}
		return syscall.Signal(n), nil
	}
	name := strings.ToUpper(text)
	if !strings.HasPrefix(name, "SIG") {
		name = "SIG" + name
	}
	if s, ok := signalNames[name]; ok {
		return s, nil
	}
	return 0, fmt.Errorf("%q is not a signal; write a name such as SIGTERM or a number", text)
}

// SignalName is the name of s as signal(7) writes it.
func SignalName(s syscall.Signal) string {
	for name, n := range signalNames {
		if n == s {
			return name
		}
	}
	return fmt.Sprintf("SIG%d", int(s))
}
