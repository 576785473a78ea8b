// The GGUF vocabularies that are stages like those of tokenizer.json: WordPiece ("bert") and Unigram ("t5").
#pragma once

#include <memory>

#include "foveate/io/tokenizer.h"

namespace foveate::io {

// BERT without case: clean text, ideographs alone, no accents, lower case; words and marks; WordPiece.  In the file a
// word begins with U+2581 where tokenizer.json marks what continues one; find() and the tokens' texts are in the form
// of tokenizer.json.  Ids equal those of the package's BERT.  (llama.cpp differs: it makes a composed letter its base
// letter, but keeps marks that stand alone, and cuts words with newer tables.)
// Throws Error, besides what Tokenizer refuses: no unknown token.
std::unique_ptr<Tokenizer> make_bert_tokenizer(Vocabulary vocabulary);

// SentencePiece's Unigram: the file's charsmap, spaces as U+2581, the best sum of scores.  Control tokens are no part
// of any text.  Throws Error, besides what Tokenizer refuses: not one finite score per token, no unknown token, a
// broken charsmap.
std::unique_ptr<Tokenizer> make_unigram_tokenizer(Vocabulary vocabulary);

}  // namespace foveate::io
