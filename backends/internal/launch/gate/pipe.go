package gate

import "syscall"

// takePipe has the output of a child that is to be made poured, and gives the
// descriptors that are left.
func (w *warden) takePipe(whose string, policy byte, files []int) (*stream, []int, error) {
	if policy == PourNot {
		return nil, files, nil
	}
	if len(files) < ForkedFiles+PipeFiles {
		return nil, files, syscall.EBADMSG
	}
	p, err := w.openPourer()
	if err != nil {
		return nil, files, err
	}
	s, err := p.add(files[ForkedFiles], files[ForkedFiles+1], whose, policy)
	if err != nil {
		w.mu.Lock()
		defer w.mu.Unlock()
		w.pipes--
		return nil, files, err
	}
	return s, append(files[:ForkedFiles], files[ForkedFiles+PipeFiles:]...), nil
}

// openPourer gives the pourer, begun with the first pipe, and counts one more.
func (w *warden) openPourer() (*pourer, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.pours == nil {
		p, err := newPourer()
		if err != nil {
			return nil, err
		}
		w.pours = p
		go p.run(w.tellNews)
	}
	w.pipes++
	return w.pours, nil
}

// pourLast pours what a child that has ended left in its pipe, so that it is in the
// log when its end is told, unless the disk does not answer. Until it is reaped no
// other process has its number.
func (w *warden) pourLast(pid int) {
	w.mu.Lock()
	c, ours := w.living[int32(pid)]
	for ; !ours && w.forking > 0; c, ours = w.living[int32(pid)] {
		w.known.Wait() // it may be a child that is just being made
	}
	w.mu.Unlock()
	if c.pipe != nil {
		w.pours.drain(c.pipe)
	}
}

// maxMissed is how many troubles that nobody heard of are kept; of more the oldest go.
const maxMissed = 1 << 8

// tellNews tells agents what has happened to streams, in its order. It is for the
// pourer's thread.
func (w *warden) tellNews() {
	news := w.pours.news
	w.pours.news = nil
	if len(news) == 0 {
		return
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, n := range news {
		switch {
		case n.closed:
			w.pipes--
			continue
		case n.Ended == 0:
			w.troubles[n.Whose] = n.Trouble
		default:
			delete(w.troubles, n.Whose)
			if len(w.agents) == 0 {
				w.missed = append(w.missed[max(0, len(w.missed)-maxMissed+1):], n.Trouble)
			}
		}
		w.sayAll(n.Encode())
	}
	w.leaveIfIdle()
}

// recount tells an agent that has come of troubles. The caller holds mu.
func (w *warden) recount(agent int) {
	for _, t := range w.missed {
		say(agent, t.Encode(), nil)
	}
	w.missed = nil
	for _, t := range w.troubles {
		say(agent, t.Encode(), nil)
	}
}
