package skirnir

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"slices"
	"sync/atomic"
	"time"
	"unsafe"
)

// The form of a ring. A page of its own says what it is:
//
//	magic [8]byte · format, area uint32 · after uint64 · made int64 · boot [64]byte · crc32c of all that
//	cursor uint64, at cursorAt
//
// The area behind it holds the notes that are kept, each numbered one more than
// the one before it, from one unit to another and over the end to the start:
//
//	crc32c of the rest, length uint32 · sequence uint64 · time, before int64 · body [length]byte
//
// All times are nanoseconds since 1970; before is the time of the note before.
// Numbers are as this processor writes them: a ring is read where it was written.
const (
	ringFormat = 1
	ringMagic  = "gl-ring\n"
	bootAt     = 32
	headLength = 100 // with its checksum
	cursorAt   = 128
	areaAt     = 4096
	unit       = 32
	units      = 1 << 16 // as many as the halves of a cursor can number
	areaSize   = units * unit
	ringSize   = areaAt + areaSize
	noteHead   = 32
	maxBody    = 8 << 10
)

// ring keeps the latest notes in a piece of memory of a fixed size. Where that is
// a file they outlive the process: a note counts from when the cursor, which is
// one word, is set behind it; one that was not written to its end is not there.
// A ring is not for several goroutines at once.
type ring struct {
	memory      []byte
	mapped      bool   // memory is a file's
	oldest, end uint16 // in units; the same when no note is kept
	sequence    uint64 // of the latest note, kept or not
	before      int64  // its time; at first just before the ring was made
	room        []byte // to put a note together in
}

// note is one of a ring.
type note struct {
	sequence     uint64
	time, before int64
	body         []byte
}

// newRing is a ring without notes, to be numbered from after+1.
func newRing(boot string, after uint64) *ring {
	m, put, now := make([]byte, ringSize), binary.NativeEndian, time.Now().UnixNano()
	copy(m, ringMagic)
	put.PutUint32(m[8:], ringFormat)
	put.PutUint32(m[12:], areaSize)
	put.PutUint64(m[16:], after)
	put.PutUint64(m[24:], uint64(now))
	copy(m[bootAt:headLength-4], boot)
	put.PutUint32(m[headLength-4:], crc32.Checksum(m[:headLength-4], castagnoli))
	r := &ring{memory: m, sequence: after, before: now - 1}
	r.commit()
	return r
}

// errOtherBoot says that the notes of a ring are of no use any more.
var errOtherBoot = errors.New("it is of another boot")

// readRing takes up a ring as it was, byte for byte.
func readRing(memory []byte, boot string) (*ring, error) {
	get := binary.NativeEndian
	switch {
	case len(memory) < areaAt || string(memory[:8]) != ringMagic:
		return nil, errors.New("it is no ring of events")
	case get.Uint32(memory[8:]) != ringFormat:
		return nil, fmt.Errorf("it has format %d, and this agent reads %d", get.Uint32(memory[8:]), ringFormat)
	case get.Uint32(memory[headLength-4:]) != crc32.Checksum(memory[:headLength-4], castagnoli):
		return nil, errors.New("the checksum of its head is wrong")
	case len(memory) != ringSize:
		return nil, fmt.Errorf("it has not the %d bytes that it should have", ringSize)
	case string(memory[bootAt:bootAt+len(boot)]) != boot:
		return nil, errOtherBoot
	}
	r := &ring{memory: memory, sequence: get.Uint64(memory[16:]), before: int64(get.Uint64(memory[24:])) - 1}
	word := r.cursor().Load()
	if r.oldest, r.end = uint16(word>>16), uint16(word); word != r.word() {
		return nil, errors.New("the checksum of its cursor is wrong")
	}
	notes, err := readNotes(r.kept(), 0)
	if err != nil {
		return nil, err
	}
	for i, n := range notes {
		if n.sequence != r.sequence+1 && (i > 0 || n.sequence <= r.sequence) { // those before the first were dropped
			return nil, fmt.Errorf("event %d is followed by %d", r.sequence, n.sequence)
		}
		r.sequence, r.before = n.sequence, n.time
	}
	return r, nil
}

// believed is the highest number of a note that is whole wherever it stands, 0 for
// none. What a damaged ring gave numbers to is not far beyond.
func believed(memory []byte) uint64 {
	highest := uint64(0)
	for ; len(memory) >= areaAt+noteHead; memory = memory[unit:] {
		if n, err := readNote(memory[areaAt:]); err == nil {
			highest = max(highest, n.sequence)
		}
	}
	return highest
}

func (r *ring) cursor() *atomic.Uint64 { return (*atomic.Uint64)(unsafe.Pointer(&r.memory[cursorAt])) }

// word is what the cursor is to hold: where the notes begin and end, and a checksum.
func (r *ring) word() uint64 {
	ends := uint32(r.oldest)<<16 | uint32(r.end)
	return uint64(crc32.Checksum(binary.NativeEndian.AppendUint32(nil, ends), castagnoli))<<32 | uint64(ends)
}

// commit has what was written so far count. The process may die at any
// instruction: the cursor is as it was or as it is to be, and then what was
// written before it is there, too.
func (r *ring) commit() { r.cursor().Store(r.word()) }

// kept is a copy of the notes that are kept, in one piece.
func (r *ring) kept() []byte {
	area, from, to := r.memory[areaAt:], int(r.oldest)*unit, int(r.end)*unit
	if from <= to {
		return slices.Clone(area[from:to])
	}
	return slices.Concat(area[from:], area[:to])
}

// since is from when on no note is missing.
func (r *ring) since() time.Time {
	if r.oldest == r.end {
		return time.Unix(0, r.before+1)
	}
	before := r.memory[areaAt+int(r.oldest)*unit+24:]
	return time.Unix(0, int64(binary.NativeEndian.Uint64(before))+1)
}

// readNotes reads all notes in a piece of memory, and gives those after a sequence.
func readNotes(kept []byte, after uint64) ([]note, error) {
	var notes []note
	for len(kept) > 0 {
		n, err := readNote(kept)
		if err != nil {
			return nil, err
		}
		if n.sequence > after {
			notes = append(notes, n)
		}
		kept = kept[unit*int(inUnits(len(n.body))):]
	}
	return notes, nil
}

// readNote reads the note that b begins with.
func readNote(b []byte) (note, error) {
	get := binary.NativeEndian
	length := get.Uint32(b[4:])
	if length > maxBody || noteHead+int(length) > len(b) {
		return note{}, fmt.Errorf("an event has %d bytes", length)
	}
	b = b[:noteHead+length]
	if crc32.Checksum(b[4:], castagnoli) != get.Uint32(b) {
		return note{}, errors.New("the checksum of an event is wrong")
	}
	return note{sequence: get.Uint64(b[8:]), time: int64(get.Uint64(b[16:])), before: int64(get.Uint64(b[24:])), body: b[noteHead:]}, nil
}

// inUnits is the room that a note takes.
func inUnits(body int) uint16 { return uint16((noteHead + body + unit - 1) / unit) }

// append keeps a note, numbered one more than the latest; the oldest make room.
func (r *ring) append(at time.Time, body []byte) error {
	size := inUnits(len(body))
	if err := r.makeRoom(size); err != nil {
		return err
	}
	put, now := binary.NativeEndian, at.UnixNano()
	b := append(r.room[:0], make([]byte, noteHead)...)
	put.PutUint32(b[4:], uint32(len(body)))
	put.PutUint64(b[8:], r.sequence+1)
	put.PutUint64(b[16:], uint64(now))
	put.PutUint64(b[24:], uint64(r.before))
	b = append(b, body...)
	put.PutUint32(b, crc32.Checksum(b[4:], castagnoli))
	area := r.memory[areaAt:]
	written := copy(area[int(r.end)*unit:], b)
	copy(area, b[written:])
	r.end += size
	r.commit()
	r.sequence, r.before, r.room = r.sequence+1, now, b
	return nil
}

// makeRoom drops the oldest notes, so that nothing that counts is overwritten. One
// unit stays free, or a full ring would look like an empty one.
func (r *ring) makeRoom(size uint16) error {
	for free := r.oldest - r.end - 1; free < size; {
		length := binary.NativeEndian.Uint32(r.memory[areaAt+int(r.oldest)*unit+4:])
		if length > maxBody || r.oldest == r.end {
			return errors.New("somebody else has written to it")
		}
		r.oldest += inUnits(int(length))
		free += inUnits(int(length))
		r.commit()
	}
	return nil
}
