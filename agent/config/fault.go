package config

import (
	"fmt"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"unicode"

	"github.com/gladsheim/gladsheim/agent/service"
)

// Fault is one thing that is wrong with a document, and where.
type Fault = service.Fault

// Faults is everything that is wrong, in the order of files and places. As an
// error it has one fault a line. An empty Faults means that all is well; use
// Err to get a plain nil of it.
type Faults []Fault

func (f Faults) Error() string {
	lines := make([]string, len(f))
	for i, fault := range f {
		lines[i] = fault.String()
	}
	return strings.Join(lines, "\n")
}

// Err is nil without faults, else a *service.Error of Kind Invalid that carries
// them. Op is what was tried, e.g. "register".
func (f Faults) Err(op string) error {
	if len(f) == 0 {
		return nil
	}
	return &service.Error{Op: op, Kind: service.Invalid, Reason: service.ReasonBadDefinition, Faults: f}
}

// Hide tells whether faults of dir hide what the definition of name is now: the
// directory or the name's own file could not be read, or it is in a file of another
// name. What is known of such a service is then to be kept, since it was not removed.
func (f Faults) Hide(dir string, name service.Name) bool {
	file := filepath.Join(dir, name.String()+suffix)
	return slices.ContainsFunc(f, func(fault Fault) bool {
		return fault.File == printable(dir) || fault.File == printable(file) || fault.Stray == name
	})
}

// document is one JSON document while it is read.
type document struct {
	file   string
	data   []byte
	places map[string]int // path of a field → offset of its value
	faults Faults
}

// Caps on what is told about one document, so that a hostile one can not fill
// an answer or a terminal.
const (
	maxFaults = 50
	maxField  = 200
	maxText   = 500
)

func newDocument(file string, data []byte) *document {
	return &document{file: printable(file), data: data, places: map[string]int{}}
}

// fault notes what is wrong with the field at path, which stands at offset.
func (d *document) fault(offset int, path, format string, args ...any) {
	if len(d.faults) > maxFaults {
		return
	}
	fault := d.remark(offset, path, format, args...)
	if len(d.faults) == maxFaults {
		fault.Field, fault.Message = "", "there are more faults than these"
	}
	d.faults = append(d.faults, fault)
}

// remark is a fault of the field at path that is not noted.
func (d *document) remark(offset int, path, format string, args ...any) Fault {
	line, column := d.position(offset)
	return Fault{
		File: d.file, Line: line, Column: column,
		Field: cut(printable(path), maxField), Message: cut(fmt.Sprintf(format, args...), maxText),
	}
}

// faulty tells whether something is known to be wrong with path, a part of it,
// or the whole that it is part of.
func (d *document) faulty(path string) bool {
	return slices.ContainsFunc(d.faults, func(f Fault) bool {
		return f.Field == path || within(f.Field, path) || within(path, f.Field)
	})
}

// within tells whether path lies inside of the field outer.
func within(path, outer string) bool {
	rest, ok := strings.CutPrefix(path, outer)
	return ok && outer != "" && rest != "" && (rest[0] == '.' || rest[0] == '[')
}

// place is the offset of the field at path, or of the innermost value around
// it that the document has.
func (d *document) place(path string) int {
	for path != "" {
		if offset, ok := d.places[path]; ok {
			return offset
		}
		path = path[:max(0, strings.LastIndexAny(path, ".["))]
	}
	return d.places[""]
}

// position turns an offset into line and column (in bytes), both from 1.
func (d *document) position(offset int) (line, column int) {
	before := string(d.data[:min(offset, len(d.data))])
	return strings.Count(before, "\n") + 1, len(before) - strings.LastIndex(before, "\n")
}

// sorted are the faults by their place; those of one place stay in order.
func (d *document) sorted() Faults {
	slices.SortStableFunc(d.faults, func(a, b Fault) int {
		if a.Line != b.Line {
			return a.Line - b.Line
		}
		return a.Column - b.Column
	})
	return d.faults
}

// printable quotes what could play tricks on a terminal or in a log.
func printable(s string) string {
	if strings.ContainsFunc(s, func(r rune) bool { return !unicode.IsPrint(r) || r == unicode.ReplacementChar }) {
		return strconv.QuoteToASCII(s)
	}
	return s
}

// cut shortens s to about limit bytes.
func cut(s string, limit int) string {
	if len(s) <= limit {
		return s
	}
	return strings.ToValidUTF8(s[:limit], "") + "…"
}
