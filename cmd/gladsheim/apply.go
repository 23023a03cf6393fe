package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	gladsheimv1 "github.com/gladsheim/gladsheim/proto/gladsheim/v1"
)

func (a *app) applyCommand() *cobra.Command {
	var places []string
	var dryRun bool
	c := &cobra.Command{
		Use:   "apply -f DIR…",
		Short: "Bring the registered definitions to what files say, all or none",
		Long: `Bring the registered definitions to what files say, all of them or, when one is
faulty, none. Running services go on; what changes is told with when it takes
effect. What is registered and in none of the files stays: gladsheim unregister.`,
		Example: "  gladsheim apply -f services.d --dry-run",
	}
	c.Flags().StringArrayVarP(&places, "file", "f", nil, "a `directory` of NAME.json, a file, or - for stdin; may be given again")
	c.Flags().BoolVar(&dryRun, "dry-run", false, "check, and say what would change, but change nothing")
	c.RunE = func(cmd *cobra.Command, _ []string) error {
		if len(places) == 0 {
			return usage(errors.New("cannot tell what to apply; write it as in: gladsheim apply -f services.d"))
		}
		req := &gladsheimv1.ApplyRequest{DryRun: dryRun}
		var all []string
		for _, place := range places {
			files, err := definitionFiles(place)
			if err != nil {
				return err
			}
			all = append(all, files...)
		}
		if err := a.readFiles(cmd.Context(), req, "apply", all); err != nil {
			return err
		}
		if err := a.connect(); err != nil {
			return err
		}
		ctx, cancel := a.question(cmd.Context())
		defer cancel()
		r, err := a.client.Apply(ctx, req)
		if err != nil {
			return err
		}
		return a.present(r, func() error { return a.showChanges(r.GetChanges(), dryRun) })
	}
	return c
}

// definitionFiles are the files in a directory that are definitions, or the one
// file that place is.
func definitionFiles(place string) ([]string, error) {
	if place == "-" {
		return []string{place}, nil
	}
	info, err := os.Stat(place)
	if err != nil {
		return nil, fmt.Errorf("cannot read the definitions: %w", err)
	}
	if !info.IsDir() {
		return []string{place}, nil
	}
	entries, err := os.ReadDir(place)
	if err != nil {
		return nil, fmt.Errorf("cannot read the definitions: %w", err)
	}
	var files []string
	for _, e := range entries {
		if filepath.Ext(e.Name()) != ".json" || strings.HasPrefix(e.Name(), ".") {
			continue
		}
		file := filepath.Join(place, e.Name())
		if info, err := os.Stat(file); err != nil {
			return nil, fmt.Errorf("cannot read the definitions: %w", err)
		} else if !info.Mode().IsRegular() {
			return nil, fmt.Errorf("cannot read the definitions: %s is no regular file", file)
		}
		files = append(files, file)
	}
	if len(files) == 0 {
		return nil, fmt.Errorf("cannot apply %s: there is no NAME.json in it", place)
	}
	return files, nil
}

func (a *app) showChanges(changes []*gladsheimv1.DefinitionChange, dryRun bool) error {
	counts := map[gladsheimv1.DefinitionChange_Action]int{}
	for _, c := range changes {
		counts[c.GetAction()]++
		if err := a.showChange(c); err != nil {
			return err
		}
	}
	var parts []string
	for n := range int32(len(gladsheimv1.DefinitionChange_Action_name)) {
		action := gladsheimv1.DefinitionChange_Action(n)
		if counts[action] > 0 {
			parts = append(parts, fmt.Sprintf("%d %s", counts[action], word(action, "ACTION_")))
		}
	}
	text := plural(len(changes), "definition") + ": " + strings.Join(parts, ", ")
	if dryRun {
		text += "; nothing was changed (--dry-run)"
	}
	_, err := fmt.Fprintln(a.out, text)
	return err
}
