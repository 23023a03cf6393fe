package gate

import (
	"sync"
	"syscall"
	"unsafe"
)

// A service whose log is not to lose a byte that nobody counts writes into a pipe,
// and the shim, which outlives the agent, pours that into the log. When the log can
// not be written, say because the disk is full, the service waits or its output is
// counted, as it was asked for.

// What becomes of output that can not be written, in a SayFork.
const (
	PourNot   = '-' // there is no pipe: the service writes its log itself
	PourDrop  = 'd' // it is dropped and counted, and the log says so in its place
	PourBlock = 'b' // the service waits
)

const (
	pourSize  = 16 << 10      // bytes that are read at once, and held of a service that waits
	pourTurn  = 8             // as often, before others have their turn
	pourFirst = 100_000_000   // ns until what failed is tried again; it doubles
	pourLast  = 1_000_000_000 // up to this

	// Of what else wakes the thread, among the numbers of streams.
	timerToken = -1
	askToken   = -2

	drainTime = 1000 // ms that an end waits for the last output of its process
)

// pourer pours all pipes, on one thread, which the kernel wakes. Nobody else waits for
// the disk: one that hangs holds up no launch, and ends for drainTime at most.
type pourer struct {
	epoll, timer int
	ask, answer  int // eventfd(2): that asks has grown, and answered

	door            sync.Mutex // held while nothing waits
	fresh           []*stream  // that are no streams yet
	last            int32      // number of a stream
	asks            []*stream  // that are to be drained
	asked, answered uint64     // how often, so far
	late            bool       // one that asked did not wait any more; nobody does until it is answered

	// Of the thread.
	streams []*stream // the oldest first
	pause   int64     // until what failed is tried again; 0: nothing has
	news    []news
	buffer  [pourSize]byte
}

// stream is one pipe and the log it is poured into.
type stream struct {
	number  int32
	in, out int // -1 when they are closed: in at the end of the pipe
	file    syscall.Stat_t
	whose   string
	drop    bool

	errno syscall.Errno // why the last write failed, 0 if it did not
	held  []byte        // what was not written then, and comes next
	open  bool          // the last byte in the log is no line end

	missing, lines uint64 // dropped, and not said so in the log yet
	amid           bool   // the last byte that was dropped is no line end

	trouble *Trouble // what agents were told, until it is over
	calm    bool     // it was written since the timer rang
}

// news is what has happened to a stream.
type news struct {
	Trouble
	closed bool // the stream is no more; it says nothing else
}

func newPourer() (*pourer, error) {
	const clockMonotonic = 1
	timer, _, errno := syscall.RawSyscall(syscall.SYS_TIMERFD_CREATE, clockMonotonic, syscall.O_CLOEXEC|syscall.O_NONBLOCK, 0)
	if errno != 0 {
		return nil, errno
	}
	p := &pourer{timer: int(timer), ask: -1, answer: -1}
	err := error(nil)
	if p.epoll, err = syscall.EpollCreate1(syscall.EPOLL_CLOEXEC); err == nil {
		p.ask, err = eventfd()
	}
	if err == nil {
		p.answer, err = eventfd()
	}
	for fd, token := range map[int]int32{p.timer: timerToken, p.ask: askToken} {
		if err == nil {
			err = syscall.EpollCtl(p.epoll, syscall.EPOLL_CTL_ADD, fd, &syscall.EpollEvent{Events: syscall.EPOLLIN, Fd: token})
		}
	}
	if err != nil {
		for _, fd := range []int{p.epoll, p.timer, p.ask, p.answer} {
			syscall.Close(fd)
		}
		return nil, err
	}
	allowFiles()
	setSignal(uintptr(syscall.SIGXFSZ), ignored) // it is an error of a write like others
	return p, nil
}

// allowFiles lets this process have as many descriptors as it may: two for each pipe.
func allowFiles() {
	var limit rlimit
	if _, _, errno := prlimit(rlimitNoFile, nil, &limit); errno == 0 {
		limit.soft = limit.hard
		prlimit(rlimitNoFile, &limit, nil)
	}
}

// run pours for ever.
func (p *pourer) run(tell func()) {
	var ready [16]syscall.EpollEvent
	for {
		n, _ := syscall.EpollWait(p.epoll, ready[:], -1)
		asks, asked := p.enter()
		for i := range max(n, 0) {
			switch s := p.find(ready[i].Fd); {
			case ready[i].Fd == timerToken:
				p.ring()
			case ready[i].Fd == askToken:
				unsignal(p.ask)
			case s != nil:
				p.pour(s, pourTurn*pourSize)
			}
		}
		for _, s := range asks {
			p.empty(s)
		}
		tell()
		p.reply(asked)
	}
}

// enter takes the streams that have come, and those that are to be drained.
func (p *pourer) enter() (asks []*stream, asked uint64) {
	p.door.Lock()
	defer p.door.Unlock()
	p.streams, p.fresh = append(p.streams, p.fresh...), nil
	asks, p.asks = p.asks, nil
	return asks, p.asked
}

// reply says that what was asked for until then is done, and told.
func (p *pourer) reply(asked uint64) {
	p.door.Lock()
	defer p.door.Unlock()
	if p.answered != asked {
		p.answered, p.late = asked, false
		signal(p.answer)
	}
}

// find gives the stream of a number, nil if it is no more. They are in the order of
// their numbers.
func (p *pourer) find(number int32) *stream {
	low, high := 0, len(p.streams)
	for low < high {
		if middle := (low + high) / 2; p.streams[middle].number < number {
			low = middle + 1
		} else {
			high = middle
		}
	}
	if low < len(p.streams) && p.streams[low].number == number {
		return p.streams[low]
	}
	return nil
}

// add takes both descriptors, and pours the one into the other from now on.
func (p *pourer) add(in, out int, whose string, policy byte) (*stream, error) {
	s := &stream{in: in, out: out, whose: whose, drop: policy == PourDrop}
	if err := syscall.Fstat(out, &s.file); err != nil {
		return nil, err
	}
	if err := syscall.SetNonblock(in, true); err != nil {
		return nil, err
	}
	p.door.Lock()
	defer p.door.Unlock()
	p.last++
	s.number = p.last
	if err := p.listen(s); err != nil {
		return nil, err
	}
	p.fresh = append(p.fresh, s)
	return s, nil
}

// listen has the kernel tell of what comes out of a pipe.
func (p *pourer) listen(s *stream) error {
	return syscall.EpollCtl(p.epoll, syscall.EPOLL_CTL_ADD, s.in, &syscall.EpollEvent{Events: syscall.EPOLLIN, Fd: s.number})
}

// deafen ends that: of a pipe that is not read the kernel would tell over and over
// that it has ended.
func (p *pourer) deafen(s *stream) {
	syscall.EpollCtl(p.epoll, syscall.EPOLL_CTL_DEL, s.in, &syscall.EpollEvent{})
}

// drain has what is in a pipe now poured, and waits for that, but not for a disk that
// does not answer. One caller at a time.
func (p *pourer) drain(s *stream) {
	p.door.Lock()
	p.asks, p.asked = append(p.asks, s), p.asked+1
	mine, late := p.asked, p.late
	p.door.Unlock()
	signal(p.ask)
	for wait := !late; wait; {
		wait = readable(p.answer, drainTime)
		unsignal(p.answer)
		p.door.Lock()
		if p.answered >= mine {
			wait = false
		} else if !wait {
			p.late = true
		}
		p.door.Unlock()
	}
}

// empty pours what is in a pipe now.
func (p *pourer) empty(s *stream) {
	var there int32
	if s.in < 0 {
		return
	}
	if _, _, errno := syscall.RawSyscall(syscall.SYS_IOCTL, uintptr(s.in), syscall.TIOCINQ, uintptr(unsafe.Pointer(&there))); errno == 0 {
		p.pour(s, int(there))
	}
}

// pour reads at most some bytes of a pipe, as long as it holds any and its service
// is not to wait.
func (p *pourer) pour(s *stream, most int) {
	for most > 0 && s.in >= 0 && (s.errno == 0 || s.drop) {
		b := p.read(s, min(most, pourSize))
		if b == nil {
			p.closeIfDone(s)
			return
		}
		most -= len(b)
		p.put(s, b)
	}
}

// read gives what a pipe holds, in the one buffer there is, and nil if that is
// nothing now. At its end the pipe is closed.
func (p *pourer) read(s *stream, most int) []byte {
	for s.in >= 0 {
		n, err := syscall.Read(s.in, p.buffer[:most])
		switch {
		case n > 0:
			return p.buffer[:n]
		case err == syscall.EAGAIN:
			return nil
		case err != syscall.EINTR:
			p.deafen(s)
			syscall.Close(s.in)
			s.in = -1
		}
	}
	return nil
}

// closeIfDone closes a stream whose pipe has ended and of which all is written.
func (p *pourer) closeIfDone(s *stream) {
	if s.in >= 0 || s.errno != 0 || s.out < 0 {
		return
	}
	p.over(s)
	syscall.Close(s.out)
	s.out = -1
	for i, other := range p.streams {
		if other == s {
			p.streams = append(p.streams[:i], p.streams[i+1:]...)
			break
		}
	}
	p.news = append(p.news, news{closed: true})
}

// put writes what was read, unless that has to wait for the next attempt.
func (p *pourer) put(s *stream, b []byte) {
	if s.errno == 0 {
		if s.errno = p.behind(s); s.errno == 0 {
			b = b[p.write(s, b):]
		}
		if s.errno != 0 {
			p.begin(s)
			if !s.drop {
				s.held = append([]byte(nil), b...)
				p.deafen(s)
				return
			}
		}
	}
	s.lose(b)
}

// behind is why an older stream into the same file can not be written, 0 if none is
// in the way: what an incarnation wrote comes before what the next one did.
func (p *pourer) behind(s *stream) syscall.Errno {
	if p.pause == 0 {
		return 0
	}
	for _, older := range p.streams {
		if older == s {
			break
		}
		if older.errno != 0 && older.file.Ino == s.file.Ino && older.file.Dev == s.file.Dev {
			return older.errno
		}
	}
	return 0
}

// write appends to the log, and tells how much it took; less than all only with an
// errno.
func (p *pourer) write(s *stream, b []byte) (written int) {
	s.errno = 0
	for written < len(b) {
		n, err := syscall.Write(s.out, b[written:])
		if n > 0 {
			written += n
			s.open = b[written-1] != '\n'
			continue
		}
		if err == syscall.EINTR {
			continue
		}
		var ok bool
		if s.errno, ok = err.(syscall.Errno); !ok {
			s.errno = syscall.EIO
		}
		break
	}
	return written
}

// lose counts what is dropped.
func (s *stream) lose(b []byte) {
	if len(b) == 0 {
		return
	}
	lines := uint64(0)
	for _, c := range b {
		if c == '\n' {
			lines++
		}
	}
	s.missing, s.lines, s.amid = s.missing+uint64(len(b)), s.lines+lines, b[len(b)-1] != '\n'
	s.trouble.Bytes, s.trouble.Lines = s.trouble.Bytes+uint64(len(b)), s.trouble.Lines+lines
}

// begin takes up that a log can not be written.
func (p *pourer) begin(s *stream) {
	s.calm = false
	if s.trouble == nil {
		s.trouble = &Trouble{Whose: s.whose, Block: !s.drop, Errno: s.errno, Began: now()}
		p.news = append(p.news, news{Trouble: *s.trouble})
	}
	if p.pause == 0 {
		p.pause = pourFirst
		p.arm()
	}
}

// over tells that a log is written again, if it was told that it is not.
func (p *pourer) over(s *stream) {
	if s.trouble != nil {
		s.trouble.Ended = now()
		p.news = append(p.news, news{Trouble: *s.trouble})
		s.trouble = nil
	}
}

func now() int64 {
	var t syscall.Timeval
	if syscall.Gettimeofday(&t) != nil {
		return 0
	}
	return t.Nano()
}

// arm has the timer ring once, after the pause.
func (p *pourer) arm() {
	at := [2]syscall.Timespec{1: syscall.NsecToTimespec(p.pause)} // struct itimerspec
	syscall.RawSyscall6(syscall.SYS_TIMERFD_SETTIME, uintptr(p.timer), 0, uintptr(unsafe.Pointer(&at[0])), 0, 0, 0)
}

// ring tries again what failed. The kernel does not tell when a disk has room. Of a
// log that was written from one ring to the next it is told that it is well.
func (p *pourer) ring() {
	var rings [8]byte
	syscall.Read(p.timer, rings[:])
	troubled := false
	for _, s := range append([]*stream(nil), p.streams...) {
		switch {
		case s.errno != 0:
			p.again(s)
		case s.trouble != nil && s.calm:
			p.over(s)
		}
		s.calm = s.errno == 0
		troubled = troubled || s.trouble != nil
	}
	if p.pause = min(2*p.pause, pourLast); !troubled {
		p.pause = 0
		return
	}
	p.arm()
}

// again tries to write what is to come next.
func (p *pourer) again(s *stream) {
	if errno := p.behind(s); errno != 0 {
		return
	}
	s.held = s.held[p.write(s, s.held):]
	if s.errno != 0 {
		return
	}
	s.held = nil
	switch {
	case !s.drop:
		p.pour(s, pourTurn*pourSize) // all of it, before what comes behind
		if s.in >= 0 && s.errno == 0 && p.listen(s) != nil {
			s.errno = syscall.ENOMEM
		}
	case s.missing > 0:
		b := p.rest(s)
		note := s.note()
		if n := p.write(s, note); n > 0 { // from here on it counts as said
			s.missing, s.lines = 0, 0
			s.held = note[n:]
		}
		p.put(s, b)
	}
	p.closeIfDone(s)
}

// rest drops the rest of a line whose beginning was dropped, if it is there, and
// gives what follows it.
func (p *pourer) rest(s *stream) []byte {
	if !s.amid {
		return nil
	}
	b := p.read(s, pourSize)
	for i, c := range b {
		if c == '\n' {
			s.lose(b[:i+1])
			return b[i+1:]
		}
	}
	return b
}

// note is what the log says where something is missing. It begins with a line end if
// the line before has none; then it says so, for that is not the service's.
func (s *stream) note() []byte {
	var b []byte
	if s.open {
		b = append(b, '\n')
	}
	b = append(append(b, "[gladsheim: "...), digits(s.missing)...)
	b = append(append(append(b, " bytes in "...), digits(s.lines)...), " lines were dropped here"...)
	if s.open {
		b = append(b, ", the rest of the line above among them"...)
	}
	return append(append(append(b, ": "...), s.trouble.Errno.Error()...), "]\n"...)
}

func digits(n uint64) []byte {
	var b [20]byte
	i := len(b)
	for {
		i--
		b[i] = byte('0' + n%10)
		if n /= 10; n == 0 {
			return b[i:]
		}
	}
}
