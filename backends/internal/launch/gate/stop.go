package gate

import "syscall"

// calm is how long nobody is told of stops after one and the same child has been told of
// twice: a child that is stopped again and again costs us little.
var calm = syscall.Timespec{Nsec: 100_000_000}

// watchStops tells of children that a signal has stopped, and of those that go on
// (waitid(2)). Of one that is both within a moment the kernel tells the latest.
func (w *warden) watchStops() {
	told := map[int32]bool{} // since the last pause
	for {
		pid, sig, err := awaitChild(syscall.WSTOPPED | syscall.WCONTINUED)
		if err == syscall.ECHILD {
			<-w.bred
		}
		if err != nil {
			continue
		}
		if told[pid] {
			pause := calm
			syscall.Nanosleep(&pause, nil)
			clear(told)
		}
		told[pid] = true
		w.stopped(pid, syscall.Signal(sig) != syscall.SIGCONT)
	}
}

// stopped tells every agent. An orphan is nobody's main process; a gate that is not
// known yet runs no program.
func (w *warden) stopped(pid int32, is bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	l, ours := w.living[pid]
	if !ours {
		return
	}
	l.stopped = is
	w.living[pid] = l
	kind := byte(SayGoesOn)
	if is {
		kind = SayStopped
	}
	w.sayAll(putChild([]byte{kind}, Child{pid, l.ticks}))
}
