package main

import (
	"bytes"
	"fmt"
	"io"
	"slices"
	"strings"
	"text/tabwriter"
	"unicode"
	"unicode/utf8"

	gladsheimv1 "github.com/gladsheim/gladsheim/proto/gladsheim/v1"
)

// style is what the user's terminal can show.
type style struct {
	colour  bool
	unicode bool
}

// styleOf follows NO_COLOR (no-color.org), TERM=dumb and the locale.
func styleOf(s surroundings) style {
	locale := s.getenv("LC_ALL")
	for _, name := range []string{"LC_CTYPE", "LANG"} {
		if locale == "" {
			locale = s.getenv(name)
		}
	}
	locale = strings.ToLower(locale)
	return style{
		colour:  s.terminal && s.getenv("NO_COLOR") == "" && s.getenv("TERM") != "dumb",
		unicode: strings.Contains(locale, "utf-8") || strings.Contains(locale, "utf8"),
	}
}

// colour is a number of ECMA-48's SGR.
type colour int

const (
	noColour colour = 0
	red      colour = 31
	green    colour = 32
	yellow   colour = 33
)

func (s style) paint(c colour, text string) string {
	if !s.colour || c == noColour {
		return text
	}
	return fmt.Sprintf("\x1b[%dm%s\x1b[0m", c, text)
}

// sign is a symbol that always goes with a word.
type sign struct {
	symbol, ascii string
	colour        colour
}

var (
	signOn      = sign{"●", "*", green}
	signOff     = sign{"○", "o", noColour}
	signBad     = sign{"✗", "x", red}
	signBusy    = sign{"◌", ".", yellow}
	signGood    = sign{"✓", "+", green}
	signWarning = sign{"!", "!", yellow}
	noSign      = sign{" ", " ", noColour}
)

func (s style) bare(x sign) string {
	if s.unicode {
		return x.symbol
	}
	return x.ascii
}

func (s style) show(x sign) string { return s.paint(x.colour, s.bare(x)) }

func signOf(state gladsheimv1.ServiceState) sign {
	switch state {
	case gladsheimv1.ServiceState_SERVICE_STATE_RUNNING:
		return signOn
	case gladsheimv1.ServiceState_SERVICE_STATE_STOPPED:
		return signOff
	case gladsheimv1.ServiceState_SERVICE_STATE_CRASHED:
		return signBad
	}
	return signBusy
}

// table aligns columns. Symbols stand before the first one, outside of the
// alignment, so that their colours do not disturb it.
type table struct {
	style
	signed bool
	blank  bool // nothing to say is left blank, and not a dash
	rows   [][]string
	signs  []sign
}

func (t *table) add(s sign, cells ...string) {
	for i, c := range cells {
		if cells[i] = plain(c); c == "" && !t.blank {
			cells[i] = "-"
		}
	}
	t.signs, t.rows, t.signed = append(t.signs, s), append(t.rows, cells), t.signed || s != noSign
}

func (t *table) write(w io.Writer) error {
	var aligned bytes.Buffer
	columns := tabwriter.NewWriter(&aligned, 0, 8, 2, ' ', 0)
	for _, row := range t.rows {
		fmt.Fprintln(columns, strings.Join(row, "\t"))
	}
	if err := columns.Flush(); err != nil {
		return err
	}
	for i, line := range strings.Split(strings.TrimSuffix(aligned.String(), "\n"), "\n") {
		if len(t.rows) == 0 {
			return nil
		}
		if t.signed {
			line = t.show(t.signs[i]) + " " + line
		}
		if _, err := fmt.Fprintln(w, strings.TrimRight(line, " ")); err != nil {
			return err
		}
	}
	return nil
}

// oneLine is what errors say, which are one a line when several are joined. What
// is said twice is said once.
func oneLine(text string) string {
	var said []string
	for line := range strings.Lines(text) {
		line = strings.TrimSpace(line)
		before := func(s string) bool { return strings.HasSuffix(s, line) } // perhaps after what it was done for
		if line != "" && !slices.ContainsFunc(said, before) {
			said = append(said, line)
		}
	}
	return plain(strings.Join(said, "; "))
}

// plain makes text harmless to a terminal: control characters, which could
// move the cursor or colour a lie, and those that turn the direction of text
// are written as escapes.
func plain(text string) string {
	if !strings.ContainsFunc(text, harmful) && utf8.ValidString(text) {
		return text
	}
	var b strings.Builder
	for i := 0; i < len(text); {
		r, size := utf8.DecodeRuneInString(text[i:])
		switch {
		case r == utf8.RuneError && size == 1:
			fmt.Fprintf(&b, `\x%02x`, text[i])
		case r == '\n':
			b.WriteString(`\n`)
		case r == '\r':
			b.WriteString(`\r`)
		case harmful(r) && r < 0x100:
			fmt.Fprintf(&b, `\x%02x`, r)
		case harmful(r):
			fmt.Fprintf(&b, `\u%04x`, r)
		default:
			b.WriteRune(r)
		}
		i += size
	}
	return b.String()
}

// harmful runes are C0 but the tab, DEL, C1, what turns the direction of text
// (Unicode's Bidi_Control), and what ends a line.
func harmful(r rune) bool {
	return unicode.IsControl(r) && r != '\t' || unicode.Is(unicode.Bidi_Control, r) || r == '\u2028' || r == '\u2029'
}
