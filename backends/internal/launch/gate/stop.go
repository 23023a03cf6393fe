package gate

import "syscall"

// calm is how long nobody is told of stops after one and the same child has been told of
// twice: a child that is stopped again and again costs us little.
var calm = syscall.Timespec{Nsec: 100_000_000}

// stirs are what is asked for here.
const stirs = syscall.WSTOPPED | syscall.WCONTINUED

// watchStops tells of children that a signal has stopped, and of those that go on
// (waitid(2)). Of one that is both within a moment the kernel tells the latest.
func (w *warden) watchStops() {
	told := map[int32]bool{} // since the last pause
	for {
		pid, sig, err := awaitChild(pAll, 0, stirs)
		if err == syscall.ECHILD {
			<-w.bred
		}
		if err != nil {
			continue
		}
		w.stopped(pid, sig)
		if told[pid] {
			w.askEach()
			pause := calm
			syscall.Nanosleep(&pause, nil)
			clear(told)
		}
		told[pid] = true
	}
}

// askEach asks for every main process by itself: of all children the kernel tells the
// first in its list, and one that is stopped again and again would keep those behind it
// from being heard.
func (w *warden) askEach() {
	w.mu.Lock()
	pids := make([]int32, 0, len(w.living))
	for pid := range w.living {
		pids = append(pids, pid)
	}
	w.mu.Unlock()
	for _, pid := range pids {
		if stirred, sig, err := awaitChild(pPID, pid, stirs|syscall.WNOHANG); err == nil && stirred == pid {
			w.stopped(pid, sig)
		}
	}
}

// stopped tells every agent that a signal has stopped a child, or had it go on. An
// orphan is nobody's main process; a gate that is not known yet runs no program.
func (w *warden) stopped(pid, sig int32) {
	w.mu.Lock()
	defer w.mu.Unlock()
	l, ours := w.living[pid]
	if !ours {
		return
	}
	l.stopped = syscall.Signal(sig) != syscall.SIGCONT
	w.living[pid] = l
	kind := byte(SayGoesOn)
	if l.stopped {
		kind = SayStopped
	}
	w.sayAll(putChild([]byte{kind}, Child{pid, l.ticks}))
}
