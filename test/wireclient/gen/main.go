// Command gen writes the contract of test/wire as a .proto file, so that a client
// can be generated from nothing but the table, as those in the field were.
package main

import (
	"fmt"
	"log"
	"os"
	"strings"

	"github.com/gladsheim/gladsheim/test/wire"
)

// The Go package differs from ours, the protobuf package does not: by it the two
// ends of a call understand each other.
const head = `// Code generated from wire.tsv by test/wireclient/gen. DO NOT EDIT.

syntax = "proto3";

package %s;

option go_package = "github.com/gladsheim/gladsheim/test/wireclient/oldpb";
`

var (
	keywords = map[string]string{"rpc": "service", "field": "message", "enum": "enum"}
	lines    = map[string]func(wire.Row) string{
		"rpc":   func(r wire.Row) string { return fmt.Sprintf("rpc %s(%s) returns (%s);", r.Name, r.Number, r.Type) },
		"field": func(r wire.Row) string { return fmt.Sprintf("%s %s = %s;", r.Type, r.Name, r.Number) },
		"enum":  func(r wire.Row) string { return fmt.Sprintf("%s = %s;", r.Name, r.Number) },
	}
)

func main() {
	rows, err := wire.Table()
	if err != nil {
		log.Fatal(err)
	}
	if _, err := os.Stdout.WriteString(proto(rows)); err != nil {
		log.Fatal(err)
	}
}

// proto relies on the rows of one holder standing together.
func proto(rows []wire.Row) string {
	var b strings.Builder
	fmt.Fprintf(&b, head, wire.Package)
	holder := ""
	for _, r := range rows {
		if r.Holder != holder {
			if holder != "" {
				b.WriteString("}\n")
			}
			holder = r.Holder
			fmt.Fprintf(&b, "\n%s %s {\n", keywords[r.Kind], holder)
		}
		fmt.Fprintf(&b, "  %s\n", lines[r.Kind](r))
	}
	b.WriteString("}\n")
	return b.String()
}
