package tail

import (
	"bytes"
	"context"
	"errors"
	"io"
	"regexp"
)

// startOf finds where the last n lines of a log begin that match, going backwards
// from its end to its oldest byte. Past MaxScan it stops at the line it has come
// to.
func startOf(ctx context.Context, f io.ReaderAt, oldest, last int64, n int, match *regexp.Regexp) (int64, error) {
	if n <= 0 {
		return last, nil
	}
	floor := max(oldest, last-MaxScan)
	b := &backwards{ctx: ctx, file: f, floor: floor}
	end := last
	if final, err := b.byteAt(last - 1); err != nil {
		return 0, err
	} else if final == '\n' {
		end = last - 1 // the end of the last line, not the start of an empty one
	}
	for start := floor; ; {
		newline, err := b.newlineBefore(end)
		if err != nil {
			return 0, err
		}
		if newline < 0 && floor > 0 {
			return start, nil // the line began before the floor
		}
		start = newline + 1
		matches, err := b.matches(start, end, match)
		if err != nil {
			return 0, err
		}
		if matches {
			n--
		}
		if n == 0 || start == 0 {
			return start, nil
		}
		end = newline
	}
}

// backwards reads a file from its end, a block at a time.
type backwards struct {
	ctx   context.Context
	file  io.ReaderAt
	floor int64
	start int64 // of the block
	block []byte
	space [MaxLine]byte
	piece []byte // of a line that is in no one block
}

// load makes the block hold the byte at pos as its last.
func (b *backwards) load(pos int64) error {
	b.start = max(b.floor, pos+1-int64(len(b.space)))
	n, err := b.read(b.space[:pos+1-b.start], b.start)
	b.block = b.space[:n] // shorter if the file was truncated meanwhile
	return err
}

// read fills as much of data as there is. A caller that has left is not read for.
func (b *backwards) read(data []byte, from int64) (int, error) {
	if err := b.ctx.Err(); err != nil {
		return 0, err
	}
	n, err := b.file.ReadAt(data, from)
	if errors.Is(err, io.EOF) {
		err = nil
	}
	return n, err
}

// matches tells whether a piece of the line from start to end matches.
func (b *backwards) matches(start, end int64, match *regexp.Regexp) (bool, error) {
	if match == nil {
		return true, nil
	}
	if blockEnd := b.start + int64(len(b.block)); start >= b.start && end <= blockEnd && start <= end {
		return match.Match(b.block[start-b.start : end-b.start]), nil
	}
	if b.piece == nil {
		b.piece = make([]byte, MaxLine)
	}
	for {
		n, err := b.read(b.piece[:min(MaxLine, end-start)], start)
		if err != nil {
			return false, err
		}
		if match.Match(b.piece[:n]) {
			return true, nil
		}
		if start += int64(n); start >= end || n == 0 {
			return false, nil
		}
	}
}

// byteAt is the byte at pos, 0 if there is none.
func (b *backwards) byteAt(pos int64) (byte, error) {
	if pos < b.floor {
		return 0, nil
	}
	if err := b.load(pos); err != nil || len(b.block) == 0 {
		return 0, err
	}
	return b.block[len(b.block)-1], nil
}

// newlineBefore is where the last newline before end is, -1 if there is none
// above the floor.
func (b *backwards) newlineBefore(end int64) (int64, error) {
	for end > b.floor {
		if end <= b.start || end > b.start+int64(len(b.block)) {
			if err := b.load(end - 1); err != nil {
				return 0, err
			}
			if len(b.block) == 0 {
				return -1, nil
			}
		}
		if i := bytes.LastIndexByte(b.block[:min(int64(len(b.block)), end-b.start)], '\n'); i >= 0 {
			return b.start + int64(i), nil
		}
		end = b.start
	}
	return -1, nil
}
