package config

import (
	"encoding/json"
	"strconv"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/stretchr/testify/require"
)

func TestScanFaults(t *testing.T) {
	for _, c := range []struct{ document, want string }{
		{"", "f:1:1: is empty; a JSON object is wanted"},
		{" \n ", "f:2:2: is empty; a JSON object is wanted"},
		{"\xEF\xBB\xBF{}", "f:1:1: begins with a byte order mark (BOM); save it as UTF-8 without one"},
		{"\xFF\xFE{\x00}\x00", "f:1:1: is UTF-16; save it as UTF-8"},
		{"{\n \"a\": \"\xC3\x28\"}", "f:2:8: byte 0xc3 is not valid UTF-8"},
		{"{}\n{}", "f:2:1: there is more after the end of the document"},
		{"{} // end", "f:1:4: JSON has no comments"},
		{"{\n  // name\n}", "f:2:3: JSON has no comments"},
		{`{"a": 1 /* one */}`, "f:1:9: JSON has no comments"},
		{`{"a": # one`, "f:1:7: JSON has no comments"},
		{`{"a": 1,}`, "f:1:8: a comma before '}' is not allowed"},
		{`{"a": [1,]}`, "f:1:9: a comma before ']' is not allowed"},
		{"{\"a\": 1\n \"b\": 2}", "f:2:2: a comma or '}' is wanted here, not '\"'"},
		{`{"a": [1 2]}`, "f:1:10: a comma or ']' is wanted here, not '2'"},
		{`{"a" 1}`, `f:1:6: a colon after the key "a" is wanted here, not '1'`},
		{`{a: 1}`, "f:1:2: a key in double quotes is wanted here, not 'a'"},
		{`{'a': 1}`, `f:1:2: a key in double quotes is wanted here, not '\''`},
		{`{"a": 'b'}`, `f:1:7: a value is wanted here, not '\''`},
		{`{"a": }`, "f:1:7: a value is wanted here, not '}'"},
		{"{\"a\":\n[1,", "f:2:4: the document ends where a value is wanted"},
		{"{\"a\":\n[1", "f:2:3: the document ends inside of an array that began in line 2"},
		{`{"a": 1`, "f:1:8: the document ends inside of an object that began in line 1"},
		{`{"a": "b`, "f:1:7: a string begins here and has no end"},
		{"{\"a\": \"b\nc\"}", `f:1:7: a string ends in the line it began in; a line break inside is written \n`},
		{"{\"a\": \"\x07\"}", `f:1:8: the control character 0x07 is written \u0007 inside of a string`},
		{`{"a": "\x"}`, `f:1:8: after a backslash comes one of " \ / b f n r t, or u and four hexadecimal digits`},
		{`{"a": "\u12"}`, `f:1:8: after a backslash comes one of " \ / b f n r t, or u and four hexadecimal digits`},
		{`{"a": "\ud800"}`, "f:1:8: half of a UTF-16 surrogate pair stands for no character"},
		{`{"a": "\ud800A"}`, "f:1:8: half of a UTF-16 surrogate pair stands for no character"},
		{`{"a": "\udc00"}`, "f:1:8: half of a UTF-16 surrogate pair stands for no character"},
		{`{"a": NaN}`, "f:1:7: NaN is not JSON, which has finite numbers only"},
		{`{"a": -Infinity}`, "f:1:7: -Infinity is not JSON, which has finite numbers only"},
		{`{"a": True}`, "f:1:7: True is not JSON; write true"},
		{`{"a": 010}`, "f:1:7: 010 is not a number as JSON has it: no leading zero or plus, digits around the point"},
		{`{"a": +1}`, "f:1:7: +1 is not a number as JSON has it: no leading zero or plus, digits around the point"},
		{`{"a": .5}`, "f:1:7: .5 is not a number as JSON has it: no leading zero or plus, digits around the point"},
		{`{"a": 256MiB}`, "f:1:7: 256MiB is neither a number nor true, false or null; a string is written in double quotes"},
		{`{"a": 0x10}`, "f:1:7: 0x10 is neither a number nor true, false or null; a string is written in double quotes"},
		{strings.Repeat("[", maxDepth+1), "f:1:17: is nested deeper than 16 levels"},
		{strings.Repeat("[", 10_000), "f:1:17: is nested deeper than 16 levels"},
		{"[" + strings.Repeat("1,", maxValues) + "1]", "f:1:20000: has more than 10000 values"},
		{strings.Repeat(" ", maxBytes+1), "f:1:1: has more than 1048576 bytes"},
	} {
		d := newDocument("f", []byte(c.document))
		require.Nil(t, scan(d), "%.80q", c.document)
		require.Equal(t, c.want, d.faults.Error(), "%.80q", c.document)
	}
}

func TestScanValues(t *testing.T) {
	d := newDocument("f", []byte(` {"a": ["é\u00e9\ud83d\ude00\"\\\/\b\f\n\r\t", -1.5e+3, true, false, null, {}, []]} `))
	root := scan(d)
	require.Empty(t, d.faults)
	require.Equal(t, isObject, root.kind)
	items := root.pairs[0].value.items
	require.Equal(t, "éé😀\"\\/\b\f\n\r\t", items[0].text)
	require.Equal(t, "-1.5e+3", items[1].text)
	kinds := []kind{isText, isNumber, isBool, isBool, isNull, isObject, isArray}
	for i, item := range items {
		require.Equal(t, kinds[i], item.kind)
	}
	require.NotNil(t, scan(newDocument("f", []byte(strings.Repeat("[", maxDepth)+strings.Repeat("]", maxDepth)))))
}

// FuzzScan holds scan against encoding/json: both accept the same documents and
// read the same values, but for what only scan refuses.
func FuzzScan(f *testing.F) {
	for _, seed := range []string{`{"a":[1,"b",null,true,{"c":-1.5e3}]}`, `"😀"`, `{"a":1,"a":2}`, "[1,]", `"\ud800"`, "{} ", strings.Repeat("3", 500)} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		d := newDocument("f", data)
		root := scan(d)
		if root == nil {
			require.Len(t, d.faults, 1)
			ours := d.faults[0].Message
			strict := !utf8.Valid(data) || strings.Contains(ours, "surrogate") || strings.Contains(ours, "nested deeper") ||
				strings.Contains(ours, "values") || strings.Contains(ours, "bytes")
			require.True(t, strict || !json.Valid(data), "%s", ours)
			return
		}
		require.Empty(t, d.faults)
		var theirs any
		decoder := json.NewDecoder(strings.NewReader(string(data)))
		decoder.UseNumber()
		require.NoError(t, decoder.Decode(&theirs))
		requireSame(t, theirs, root)
	})
}

func requireSame(t *testing.T, want any, n *node) {
	t.Helper()
	switch want := want.(type) {
	case nil:
		require.Equal(t, isNull, n.kind)
	case bool:
		require.Equal(t, strconv.FormatBool(want), n.text)
	case string:
		require.Equal(t, want, n.text)
	case json.Number:
		require.Equal(t, want.String(), n.text)
	case []any:
		require.Len(t, n.items, len(want))
		for i, item := range want {
			requireSame(t, item, n.items[i])
		}
	case map[string]any:
		last := map[string]*node{} // which is what encoding/json takes
		for _, p := range n.pairs {
			last[p.key] = p.value
		}
		require.Len(t, last, len(want))
		for key, value := range want {
			if len(last) == len(n.pairs) {
				requireSame(t, value, last[key])
			}
		}
	}
}
