// Package wire holds the first contract as a table, wire.tsv, and compares a
// protobuf file with it. The table is what clients in the field were made from:
// it is never changed to fit the code.
package wire

import (
	_ "embed"
	"fmt"
	"strings"

	"google.golang.org/protobuf/reflect/protoreflect"
)

// Package is the protobuf package of the contract.
const Package = "gladsheim.v1"

// FirstAdded is the lowest number of a field that is added to a message of the
// contract.
const FirstAdded = 20

//go:embed wire.tsv
var table string

// Row is one line of the table.
//
//	kind    holder    name    number    type
//	rpc     service   call    request   response
//	field   message   field   number    type, as a .proto file writes it
//	enum    enum      value   number    -
type Row struct {
	Kind, Holder, Name, Number, Type string
}

func (r Row) String() string {
	return strings.TrimSpace(strings.Join([]string{r.Kind, r.Holder, r.Name, r.Number, r.Type}, " "))
}

// Table returns the rows of wire.tsv.
func Table() ([]Row, error) {
	var rows []Row
	for n, line := range strings.Split(strings.TrimRight(table, "\n"), "\n") {
		if strings.HasPrefix(line, "#") {
			continue
		}
		c := strings.Split(line, "\t")
		if len(c) != 5 {
			return nil, fmt.Errorf("wire.tsv:%d: %d columns, want 5", n+1, len(c))
		}
		rows = append(rows, Row{c[0], c[1], c[2], c[3], c[4]})
	}
	return rows, nil
}

// Compare reports, one line each, where file breaks the contract in rows. Calls,
// messages and fields from FirstAdded on may be added. Values may not be added to
// an enum of the contract: an old client could not name them.
func Compare(rows []Row, file protoreflect.FileDescriptor) []string {
	var faults []string
	if file.Package() != Package {
		faults = append(faults, fmt.Sprintf("package is %s, want %s", file.Package(), Package))
	}

	found := make(map[Row]bool)
	for _, r := range describe(file) {
		found[r.Row] = true
	}
	wanted := make(map[Row]bool)
	fixed := make(map[string]bool)
	for _, r := range rows {
		wanted[r] = true
		fixed[r.Holder] = true
		if !found[r] {
			faults = append(faults, "missing: "+r.String())
		}
	}

	for _, r := range describe(file) {
		switch {
		case wanted[r.Row] || !fixed[r.Holder]:
		case r.Kind == "field" && r.number < FirstAdded:
			faults = append(faults, fmt.Sprintf("added below %d: %s", FirstAdded, r))
		case r.Kind == "enum":
			faults = append(faults, "added: "+r.String())
		}
	}
	return faults
}

// described is a Row of a descriptor, with its number as one.
type described struct {
	Row
	number int
}

// describe lists what file declares, in the words of the table.
func describe(file protoreflect.FileDescriptor) []described {
	var rows []described
	add := func(kind string, holder, name protoreflect.Name, number int, typ string) {
		rows = append(rows, described{Row{kind, string(holder), string(name), fmt.Sprint(number), typ}, number})
	}
	for i := range file.Services().Len() {
		service := file.Services().Get(i)
		for j := range service.Methods().Len() {
			m := service.Methods().Get(j)
			rows = append(rows, described{Row: Row{
				"rpc", string(service.Name()), string(m.Name()),
				streamed(m.IsStreamingClient(), m.Input()), streamed(m.IsStreamingServer(), m.Output()),
			}})
		}
	}
	for i := range file.Messages().Len() {
		message := file.Messages().Get(i)
		for j := range message.Fields().Len() {
			f := message.Fields().Get(j)
			add("field", message.Name(), f.Name(), int(f.Number()), fieldType(f))
		}
	}
	for i := range file.Enums().Len() {
		enum := file.Enums().Get(i)
		for j := range enum.Values().Len() {
			v := enum.Values().Get(j)
			add("enum", enum.Name(), v.Name(), int(v.Number()), "")
		}
	}
	return rows
}

func streamed(stream bool, m protoreflect.MessageDescriptor) string {
	if stream {
		return "stream " + local(m)
	}
	return local(m)
}

func fieldType(f protoreflect.FieldDescriptor) string {
	switch oneof := f.ContainingOneof(); {
	case f.IsMap():
		return fmt.Sprintf("map<%s,%s>", plainType(f.MapKey()), plainType(f.MapValue()))
	case f.IsList():
		return "repeated " + plainType(f)
	case f.HasOptionalKeyword():
		return "optional " + plainType(f)
	case oneof != nil:
		// Never in the table: to move a field into a oneof is to change it.
		return "oneof " + string(oneof.Name()) + " " + plainType(f)
	}
	return plainType(f)
}

func plainType(f protoreflect.FieldDescriptor) string {
	switch f.Kind() {
	case protoreflect.MessageKind:
		return local(f.Message())
	case protoreflect.EnumKind:
		return local(f.Enum())
	}
	return f.Kind().String()
}

// local is the name of d as a file of the contract's package writes it.
func local(d protoreflect.Descriptor) string {
	return strings.TrimPrefix(string(d.FullName()), Package+".")
}
