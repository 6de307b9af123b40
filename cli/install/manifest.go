package install

import "strings"

// documents splits YAML at its separators and leaves out what is empty.
func documents(text string) (docs []string) {
	for _, doc := range strings.Split("\n"+text, "\n---") {
		body := doc
		if !strings.HasPrefix(doc, "\n") { // what follows the separator on its line
			_, body, _ = strings.Cut(doc, "\n")
		}
		if strings.TrimSpace(body) != "" {
			docs = append(docs, body)
		}
	}
	return docs
}
