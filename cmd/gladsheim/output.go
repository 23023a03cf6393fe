package main

import (
	"bytes"
	"encoding/json"
	"fmt"

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
	_, err = fmt.Fprintln(a.out, out.String())
	return err
}

// printLine writes a message of a stream: one line, whatever -o says.
func (a *app) printLine(m proto.Message) error {
	b, err := marshaller.Marshal(m)
	if err != nil {
		return err
	}
	var out bytes.Buffer
	if err := json.Compact(&out, b); err != nil {
		return err
	}
	_, err = fmt.Fprintln(a.out, out.String())
	return err
}
