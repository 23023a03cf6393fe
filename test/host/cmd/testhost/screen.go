package main

import (
	"errors"
	"os"
	"os/signal"

	"golang.org/x/sys/unix"
	"golang.org/x/term"

	"github.com/gladsheim/gladsheim/test/host/internal/wire"
)

// screen is the caller's terminal, lent to the command. A nil screen is none.
type screen struct {
	before  *term.State
	resized chan os.Signal
}

// openScreen makes every key go to the command.
func openScreen(wanted bool) (*screen, error) {
	if !wanted {
		return nil, nil
	}
	if !term.IsTerminal(int(os.Stdin.Fd())) {
		return nil, errors.New("-tty: standard input is not a terminal; -stdin passes on other input")
	}
	before, err := term.MakeRaw(int(os.Stdin.Fd()))
	return &screen{before: before, resized: make(chan os.Signal, 1)}, err
}

func (s *screen) size() *wire.Size {
	if s == nil {
		return nil
	}
	columns, rows, err := term.GetSize(int(os.Stdin.Fd()))
	if err != nil || columns == 0 || rows == 0 {
		columns, rows = 80, 24
	}
	return &wire.Size{Rows: uint16(rows), Cols: uint16(columns)}
}

func (s *screen) env() []string {
	if s == nil {
		return nil
	}
	return []string{"TERM=" + os.Getenv("TERM")}
}

func (s *screen) onResize(do func(wire.Size)) {
	if s == nil {
		return
	}
	signal.Notify(s.resized, unix.SIGWINCH)
	go func() {
		for range s.resized {
			do(*s.size())
		}
	}()
}

// restore gives the terminal back; it may be called again.
func (s *screen) restore() {
	if s != nil {
		_ = term.Restore(int(os.Stdin.Fd()), s.before)
	}
}
