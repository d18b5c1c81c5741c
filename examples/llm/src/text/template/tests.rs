use super::{Message, Piece, Role, Template};
use candle_core::quantized::gguf_file::Content;
use std::fs::File;
use std::io::BufReader;

/// Every construct that the templates of the ChatML family use: first-turn tests, loop variables, whitespace control, tools nobody gave.
const CHATML: &str = "
{%- if tools %}{{ tools | tojson }}{% endif -%}
{%- for message in messages %}
    {%- if loop.first and messages[0]['role'] != 'system' -%}
        {{ '<|im_start|>system\\nBe brief.<|im_end|>\\n' }}
    {%- endif %}
    {%- if message.role == 'user' or (message.role == 'assistant' and not message.tool_calls) %}
        {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' + '\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}
";
/// As Llama 3: the first token printed, contents trimmed, a date, a variable set in a loop.
const HEADERS: &str = "{{- bos_token }}
{%- if not date_string is defined %}{% set date_string = strftime_now('%d %b %Y') %}{% endif %}
{%- if messages[0]['role'] == 'system' %}{% set system = messages[0]['content'].strip() %}{% set messages = messages[1:] %}{% endif %}
{%- for message in messages %}
    {%- set content = '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' + message['content'] | trim + '<|eot_id|>' %}
    {%- if loop.index0 == 0 and date_string %}{% set content = content ~ '' %}{% endif %}
    {{- content }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{% endif %}";
/// As Gemma: roles renamed and checked, exceptions raised.
const ALTERNATING: &str = "{{ bos_token }}{% for message in messages %}
{%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('Roles must alternate') }}{% endif %}
{%- if message['role'] == 'assistant' %}{% set role = 'model' %}{% else %}{% set role = message['role'] %}{% endif %}
{{- '<start_of_turn>' + role + '\\n' + message['content'] | trim + '<end_of_turn>\\n' }}
{%- endfor %}{% if add_generation_prompt %}{{ '<start_of_turn>model\\n' }}{% endif %}";

fn template(source: &str) -> Template {
    Template::new(Some(source.to_owned()), "<s>", "</s>")
}

fn joined(pieces: &[Piece]) -> String {
    let text = |piece: &Piece| match piece {
        Piece::Markup(text) | Piece::Words(text) => text.clone(),
    };
    pieces.iter().map(text).collect()
}

fn user(content: &str) -> Message {
    Message {
        role: Role::User,
        content: content.to_owned(),
    }
}

fn assistant(content: &str) -> Message {
    Message {
        role: Role::Assistant,
        content: content.to_owned(),
    }
}

/// Whatever the template: prefix, questions and answers strung together are the conversation rendered in one go.
fn strung_together_is_rendered_in_one_go(template: &Template) {
    let conversation = template.converse("Read this.", "  Once <|im_end|> upon a time.\n").unwrap();
    let mut spoken = joined(conversation.prefix()) + &joined(&conversation.first_question("Who?\n"));
    let about = |question: &str| user(&format!("Read this.\n\nOnce <|im_end|> upon a time.\n\n{question}"));
    assert_eq!(spoken, template.render(&[about("Who?")], true).unwrap());
    spoken += "He.";
    spoken += &joined(&conversation.next_question("And when?"));
    let turns = [about("Who?"), assistant("He."), user("And when?")];
    assert_eq!(spoken, template.render(&turns, true).unwrap());
}

#[test]
fn a_conversation_read_in_parts_is_the_conversation() {
    for source in [CHATML, HEADERS, ALTERNATING] {
        strung_together_is_rendered_in_one_go(&template(source));
    }
}

#[test]
fn templates_are_rendered_as_their_makers_do() {
    let turns = [user("Hello."), assistant("Hi."), user(" Bye. ")];
    assert_eq!(
        template(CHATML).render(&turns[..1], true).unwrap(),
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHello.<|im_end|>\n<|im_start|>assistant\n"
    );
    assert_eq!(
        template(HEADERS).render(&turns[1..], false).unwrap(),
        "<s><|start_header_id|>assistant<|end_header_id|>\n\nHi.<|eot_id|><|start_header_id|>user<|end_header_id|>\n\nBye.<|eot_id|>"
    );
    assert_eq!(
        template(ALTERNATING).render(&turns, true).unwrap(),
        "<s><start_of_turn>user\nHello.<end_of_turn>\n<start_of_turn>model\nHi.<end_of_turn>\n<start_of_turn>user\nBye.<end_of_turn>\n<start_of_turn>model\n"
    );
}

#[test]
fn a_document_is_words_and_all_else_markup() {
    let conversation = template(CHATML).converse("", "Text.").unwrap();
    let expected = [
        Piece::Markup("<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n".to_owned()),
        Piece::Words("Text.".to_owned()),
        Piece::Markup(String::new()),
    ];
    assert_eq!(conversation.prefix(), expected);
    let asked = [
        Piece::Markup("\n\n".to_owned()),
        Piece::Words("<|im_end|>?".to_owned()),
        Piece::Markup("<|im_end|>\n<|im_start|>assistant\n".to_owned()),
    ];
    assert_eq!(conversation.first_question("<|im_end|>?"), asked);
}

#[test]
fn without_a_template_the_form_is_plain() {
    let conversation = Template::new(None, "", "").converse("", "Text.").unwrap();
    assert_eq!(joined(conversation.prefix()), "Text.\n\nQuestion:");
    assert_eq!(joined(&conversation.first_question("Who?")), " Who?\nAnswer:");
    assert_eq!(joined(&conversation.next_question("When?")), "\n\nQuestion: When?\nAnswer:");
}

#[test]
fn a_template_that_cannot_serve_is_refused_with_its_reason() {
    let refused = |source: &str| template(source).converse("", "Text.").unwrap_err().to_string();
    assert!(refused("{% for %}").contains("chat:1"), "{}", refused("{% for %}"));
    assert!(refused("{{ raise_exception('no users') }}").contains("no users"));
    assert!(refused("nothing").contains("leaves a message out"));
    assert!(refused("{% for m in messages %}{{ m.content }}{{ m.content }}{% endfor %}").contains("twice"));
}

#[test]
fn a_real_template_and_its_tokenizer_agree() {
    let mut file = BufReader::new(File::open(crate::source::small_test_model().unwrap()).unwrap());
    let content = Content::read(&mut file).unwrap();
    let (template, tokenizer) = (Template::from_gguf(&content), super::Tokenizer::from_gguf(&content).unwrap());
    strung_together_is_rendered_in_one_go(&template);
    let conversation = template.converse("Read this.", "Once <|im_start|> upon a time.").unwrap();
    let prefix = conversation.prefix_tokens(&tokenizer).unwrap();
    let starts = prefix.iter().filter(|id| **id == 1).count();
    assert_eq!(
        (prefix[0], starts),
        (1, 2),
        "the system's and the user's turn begin; the document's own mark is text"
    );
    let full = conversation.next_question_tokens(&tokenizer, "Who?", None).unwrap();
    let after_end = conversation.next_question_tokens(&tokenizer, "Who?", Some(2)).unwrap();
    assert_eq!(full[0], 2);
    assert_eq!(after_end, full[1..]);
}
