package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"strings"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
)

// marshaller writes every field that is not optional, so that scripts find
// them, and leaves out what is absent, which is not zero.
var marshaller = protojson.MarshalOptions{EmitDefaultValues: true}

// machine tells whether output is for programs.
func (a *app) machine() bool { return a.format != "table" }

// printJSON writes a message as -o asks: json over several lines, jsonl in one.
func (a *app) printJSON(m proto.Message) error {
	if a.format == "jsonl" {
		return a.printLine(m)
	}
	b, err := marshaller.Marshal(m)
	if err != nil {
		return err
	}
	// protojson varies its blanks on purpose.
	var out bytes.Buffer
	if err := json.Indent(&out, b, "", "  "); err != nil {
		return err
	}
	return a.printDocument(out.String())
}

// encode writes what is no message of the API as -o asks.
func (a *app) encode(v any) error {
	encoder := json.NewEncoder(a.out)
	if a.format == "json" {
		encoder.SetIndent("", "  ")
	}
	return encoder.Encode(v)
}

// printLine writes a message of a stream: one line, whatever -o says.
func (a *app) printLine(m proto.Message) error {
	line, err := compact(m)
	if err != nil {
		return err
	}
	return a.printDocument(line)
}

// printNamed is printLine for a message that does not tell its service.
func (a *app) printNamed(service string, m proto.Message) error {
	line, err := compact(m)
	if err != nil {
		return err
	}
	name, err := json.Marshal(service)
	if err != nil {
		return err
	}
	return a.printDocument(fmt.Sprintf(`{"serviceName":%s,%s`, name, strings.TrimPrefix(line, "{")))
}

// compact is a message as JSON in one line.
func compact(m proto.Message) (string, error) {
	b, err := marshaller.Marshal(m)
	if err != nil {
		return "", err
	}
	var out bytes.Buffer // protojson varies its blanks on purpose
	err = json.Compact(&out, b)
	return out.String(), err
}

// printDocument writes JSON; on a terminal without the characters that JSON
// allows in strings and that are not harmless there.
func (a *app) printDocument(document string) error {
	if a.terminal {
		var b strings.Builder
		for _, r := range document {
			if r != '\n' && harmful(r) {
				fmt.Fprintf(&b, `\u%04x`, r)
			} else {
				b.WriteRune(r)
			}
		}
		document = b.String()
	}
	_, err := fmt.Fprintln(a.out, document)
	return err
}
