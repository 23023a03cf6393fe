package config

import (
	"encoding/json"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"
	"unicode"

	"github.com/google/jsonschema-go/jsonschema"

	"github.com/gladsheim/gladsheim/agent/service"
)

// text is a string of a certain form.
type text struct {
	form *regexp.Regexp // in syntax that JSON Schema understands too, nil for any
	say  string         // what form wants, for people
	max  int            // bytes, 0 for no cap here
	line bool           // one line: without control characters
}

func (t text) read(d *document, path string, n *node, v *string) {
	if !d.want(n, path, isText) {
		return
	}
	switch {
	case t.max > 0 && len(n.text) > t.max:
		d.fault(n.offset, path, "has %d bytes; at most %d are allowed", len(n.text), t.max)
	case t.line && strings.ContainsFunc(n.text, steers):
		d.fault(n.offset, path, "holds a control character; one line of text is wanted")
	case t.form != nil && !t.form.MatchString(n.text):
		d.fault(n.offset, path, "%.100q is not %s", n.text, t.say)
	default:
		*v = n.text
	}
}

// steers tells whether r moves the cursor or turns the direction of writing.
func steers(r rune) bool { return unicode.IsControl(r) || unicode.Is(unicode.Bidi_Control, r) }

func (t text) write(v string) any {
	if v == "" {
		return nil
	}
	return v
}

func (t text) schema(string) *jsonschema.Schema {
	s := &jsonschema.Schema{Type: "string"}
	if t.form != nil {
		s.Pattern = t.form.String()
	}
	if t.max > 0 {
		s.MaxLength = jsonschema.Ptr(t.max)
	}
	return s
}

// texts is an array of strings.
type texts struct {
	min   int
	first *jsonschema.Schema // of the first string, where it differs
}

func (t texts) read(d *document, path string, n *node, v *[]string) {
	if !d.want(n, path, isArray) {
		return
	}
	list := make([]string, len(n.items))
	for i, item := range n.items {
		field := fmt.Sprintf("%s[%d]", path, i)
		d.places[field] = item.offset
		text{}.read(d, field, item, &list[i])
	}
	*v = list
}

func (t texts) write(v []string) any {
	if len(v) == 0 {
		return nil
	}
	return v
}

func (t texts) schema([]string) *jsonschema.Schema {
	s := &jsonschema.Schema{Type: "array", Items: &jsonschema.Schema{Type: "string"}}
	if t.min > 0 {
		s.MinItems = jsonschema.Ptr(t.min)
	}
	if t.first != nil {
		s.PrefixItems = []*jsonschema.Schema{t.first}
	}
	return s
}

// dictionary is an object from keys that people choose to strings.
type dictionary struct {
	key, value text
	max        int
}

func (t dictionary) read(d *document, path string, n *node, v *map[string]string) {
	if !d.want(n, path, isObject) {
		return
	}
	if len(n.pairs) > t.max {
		d.fault(n.offset, path, "has %d entries; at most %d are allowed", len(n.pairs), t.max)
		return
	}
	var entries map[string]string
	for p := range d.pairs(path, n) {
		var name, value string
		t.key.read(d, join(path, p.key), &node{kind: isText, offset: p.offset, text: p.key}, &name)
		t.value.read(d, join(path, p.key), p.value, &value)
		if entries == nil {
			entries = map[string]string{}
		}
		entries[p.key] = value
	}
	*v = entries
}

func (t dictionary) write(v map[string]string) any {
	if len(v) == 0 {
		return nil
	}
	return v // encoding/json sorts the keys
}

func (t dictionary) schema(map[string]string) *jsonschema.Schema {
	names := t.key.schema("")
	names.Type = ""
	return &jsonschema.Schema{
		Type: "object", AdditionalProperties: t.value.schema(""), PropertyNames: names, MaxProperties: jsonschema.Ptr(t.max),
	}
}

// whole is a whole number within a range.
type whole[N ~int | ~uint16 | ~uint64] struct {
	low, high  int64
	zeroAbsent bool // 0 is written by leaving the key out
}

func (w whole[N]) read(d *document, path string, n *node, v *N) {
	if !d.want(n, path, isNumber) {
		return
	}
	i, err := strconv.ParseInt(n.text, 10, 64)
	switch {
	case err != nil && strings.ContainsAny(n.text, ".eE"):
		d.fault(n.offset, path, "%s is not written as a whole number", n.text)
	case err != nil || i < w.low || i > w.high:
		d.fault(n.offset, path, "is %s; the range is %d to %d", n.text, w.low, w.high)
	default:
		*v = N(i)
	}
}

func (w whole[N]) write(v N) any {
	if v == 0 && w.zeroAbsent {
		return nil
	}
	return v
}

func (w whole[N]) schema(N) *jsonschema.Schema {
	return &jsonschema.Schema{
		Type: "integer", Minimum: jsonschema.Ptr(float64(w.low)), Maximum: jsonschema.Ptr(float64(w.high)),
	}
}

// plainNumber writes v without an exponent.
func plainNumber(v float64) json.Number {
	return json.Number(strconv.FormatFloat(v, 'f', -1, 64))
}

// warningLevel is a number of percent; without one there is none.
type warningLevel struct{}

func (warningLevel) read(d *document, path string, n *node, v *float64) {
	if !d.want(n, path, isNumber) {
		return
	}
	f, err := strconv.ParseFloat(n.text, 64)
	if err == nil {
		err = service.CheckWarning(f)
	}
	if err != nil {
		d.fault(n.offset, path, "is %s; the range is 1 to 100", n.text)
		return
	}
	*v = f
}

func (warningLevel) write(v float64) any {
	if v == 0 {
		return nil
	}
	return plainNumber(v)
}

func (warningLevel) schema(float64) *jsonschema.Schema {
	return &jsonschema.Schema{Type: "number", Minimum: jsonschema.Ptr(1.0), Maximum: jsonschema.Ptr(100.0)}
}

// yesNo is true or false; negated, it is the opposite of what the field says.
type yesNo struct{ negated bool }

func (b yesNo) read(d *document, path string, n *node, v *bool) {
	if d.want(n, path, isBool) {
		*v = (n.text == "true") != b.negated
	}
}

func (b yesNo) write(v bool) any { return v != b.negated }

func (b yesNo) schema(bool) *jsonschema.Schema { return &jsonschema.Schema{Type: "boolean"} }

// word is one of a few words.
type word[E interface {
	comparable
	fmt.Stringer
}] struct {
	values []E
}

func (w word[E]) read(d *document, path string, n *node, v *E) {
	if !d.want(n, path, isText) {
		return
	}
	if i := slices.Index(w.words(), n.text); i >= 0 {
		*v = w.values[i]
	} else {
		d.fault(n.offset, path, "%.100q is not one of %s", n.text, strings.Join(w.words(), ", "))
	}
}

func (w word[E]) write(v E) any { return v.String() }

func (w word[E]) schema(E) *jsonschema.Schema {
	s := &jsonschema.Schema{Type: "string"}
	for _, known := range w.words() {
		s.Enum = append(s.Enum, known)
	}
	return s
}

func (w word[E]) words() []string {
	words := make([]string, len(w.values))
	for i, v := range w.values {
		words[i] = v.String()
	}
	return words
}

// name is the name of a service.
type name struct{}

func (name) read(d *document, path string, n *node, v *service.Name) {
	if !d.want(n, path, isText) {
		return
	}
	parsed, err := service.ParseName(n.text)
	if err != nil {
		message := err.Error()
		if told, ok := err.(*service.Error); ok && told.Err != nil {
			message = told.Err.Error() // the place says the rest
		}
		d.fault(n.offset, path, "%s", message)
		return
	}
	*v = parsed
}

func (name) write(v service.Name) any {
	if v.IsZero() {
		return nil
	}
	return v.String()
}

func (name) schema(service.Name) *jsonschema.Schema {
	return &jsonschema.Schema{
		Type: "string", Pattern: `^[a-z][a-z0-9]*([-_][a-z0-9]+)*$`, MaxLength: jsonschema.Ptr(service.MaxNameLength),
	}
}

// duration is a duration as Go writes it.
type duration struct{ low, high time.Duration }

func (t duration) read(d *document, path string, n *node, v *time.Duration) {
	if n.kind == isNumber {
		d.fault(n.offset, path, `%s has no unit; write "%[1]ss" or "%[1]sms"`, n.text)
		return
	}
	if !d.want(n, path, isText) {
		return
	}
	parsed, err := time.ParseDuration(n.text)
	switch {
	case err != nil || parsed >= 0 && !durationForm.MatchString(n.text):
		d.fault(n.offset, path, `%.100q is not a duration; write numbers with h, m, s, ms, us or ns, such as "1m30s"`, n.text)
	case parsed < t.low || parsed > t.high:
		d.fault(n.offset, path, "is %s; the range is %s to %s", n.text, formatDuration(t.low), formatDuration(t.high))
	default:
		*v = parsed
	}
}

// durationForm leaves out what time.ParseDuration reads besides, such as +5s and
// .5s, so that the schema says what holds.
var durationForm = regexp.MustCompile(`^(0|([0-9]+(\.[0-9]*)?(h|m|s|ms|us|µs|ns))+)$`)

func (t duration) write(v time.Duration) any { return formatDuration(v) }

func (t duration) schema(time.Duration) *jsonschema.Schema {
	return &jsonschema.Schema{
		Type: "string", Pattern: durationForm.String(), Examples: []any{"500ms", "1m30s"},
	}
}

// formatDuration is d.String without zeros at the end: 10m, not 10m0s.
func formatDuration(d time.Duration) string {
	s := d.String()
	if short, ok := strings.CutSuffix(s, "m0s"); ok {
		s = short + "m"
	}
	if short, ok := strings.CutSuffix(s, "h0m"); ok {
		s = short + "h"
	}
	return s
}

// optionalDuration is a duration that is 0 when the key is left out.
type optionalDuration struct{ duration }

func (t optionalDuration) write(v time.Duration) any {
	if v == 0 {
		return nil
	}
	return t.duration.write(v)
}

// milliseconds is a duration as a whole number of milliseconds.
type milliseconds struct{ low, high time.Duration }

func (t milliseconds) number() whole[int] {
	return whole[int]{low: t.low.Milliseconds(), high: t.high.Milliseconds()}
}

func (t milliseconds) read(d *document, path string, n *node, v *time.Duration) {
	ms := -1
	if t.number().read(d, path, n, &ms); ms >= 0 {
		*v = time.Duration(ms) * time.Millisecond
	}
}

func (t milliseconds) write(v time.Duration) any { return v.Milliseconds() }

func (t milliseconds) schema(time.Duration) *jsonschema.Schema { return t.number().schema(0) }

// size is a number of bytes within a range.
type size struct{ low, high uint64 }

func (t size) read(d *document, path string, n *node, v *uint64) {
	var parsed uint64
	var err error
	switch n.kind {
	case isNumber:
		parsed, err = strconv.ParseUint(n.text, 10, 64)
	case isText:
		parsed, err = service.ParseSize(n.text)
	default:
		d.fault(n.offset, path, `is %s; it wants bytes as a whole number or a string such as "10MiB"`, kindNames[n.kind])
		return
	}
	switch {
	case err != nil && n.kind == isNumber:
		d.fault(n.offset, path, "%s is not a whole number of bytes", n.text)
	case err != nil:
		d.fault(n.offset, path, "%v", err)
	case parsed < t.low || parsed > t.high:
		d.fault(n.offset, path, "is %s; the range is %s to %s", n.text, service.FormatSize(t.low), service.FormatSize(t.high))
	default:
		*v = parsed
	}
}

func (t size) write(v uint64) any {
	if v%(1<<10) == 0 {
		return service.FormatSize(v)
	}
	return v
}

func (t size) schema(uint64) *jsonschema.Schema {
	return &jsonschema.Schema{AnyOf: []*jsonschema.Schema{
		{Type: "integer", Minimum: jsonschema.Ptr(float64(t.low)), Maximum: jsonschema.Ptr(float64(t.high))},
		{Type: "string", Pattern: `^[0-9]+(KiB|MiB|GiB|TiB)?$`},
	}}
}

// signal is a signal by name or number, as service.ParseSignal reads it.
type signal struct{}

func (signal) read(d *document, path string, n *node, v *syscall.Signal) {
	if !d.want(n, path, isText) {
		return
	}
	parsed, err := service.ParseSignal(n.text)
	switch {
	case err != nil:
		d.fault(n.offset, path, "%v", err)
	case strings.ToUpper(n.text) != n.text:
		d.fault(n.offset, path, "%q is written %s", n.text, strings.ToUpper(n.text))
	case !signalForm.MatchString(n.text):
		d.fault(n.offset, path, "%q is written %d", n.text, int(parsed))
	default:
		*v = parsed
	}
}

func (signal) write(v syscall.Signal) any {
	if v > 31 {
		return strconv.Itoa(int(v)) // real-time signals have no name that is read back
	}
	return service.SignalName(v)
}

// signalForm is that of a name or a number, without a sign or leading zeros.
var signalForm = func() *regexp.Regexp {
	var names []string
	for s := syscall.Signal(1); s <= 31; s++ {
		names = append(names, strings.TrimPrefix(service.SignalName(s), "SIG"))
	}
	return regexp.MustCompile(`^((SIG)?(` + strings.Join(names, "|") + `)|[1-9]|[1-5][0-9]|6[0-4])$`)
}()

func (signal) schema(syscall.Signal) *jsonschema.Schema {
	return &jsonschema.Schema{Type: "string", Pattern: signalForm.String()}
}

// octal is a file mode mask. JSON has no octal numbers, so it is a string.
type octal struct{}

var octalForm = regexp.MustCompile(`^[0-7]{1,4}$`)

func (octal) read(d *document, path string, n *node, v *uint32) {
	if n.kind == isNumber {
		d.fault(n.offset, path, `is a number; write octal digits as a string, such as "0022"`)
		return
	}
	if !d.want(n, path, isText) {
		return
	}
	mask, err := strconv.ParseUint(n.text, 8, 32)
	if err != nil || !octalForm.MatchString(n.text) || mask > 0o777 {
		d.fault(n.offset, path, `%.100q is not a mask; write octal digits up to "0777"`, n.text)
		return
	}
	*v = uint32(mask)
}

func (octal) write(v uint32) any { return fmt.Sprintf("%04o", v) }

func (octal) schema(uint32) *jsonschema.Schema {
	return &jsonschema.Schema{Type: "string", Pattern: `^(0?[0-7]{1,3})$`}
}
