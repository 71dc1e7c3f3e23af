import IntFlashAttention
import Testing
import intfa

@Suite struct QuantizerTextTests {
  @Test(arguments: [
    Quantizer(.int8(.token), rotates: true), Quantizer(.int4(.block(64)), centers: true),
    Quantizer(.float8(.channel)), Quantizer(.int8(.tensor), centers: true, rotates: true),
    Quantizer(.int4Clipped), Quantizer(.int4Progressive(tokens: 32, channels: 1)),
  ])
  func textGivesTheQuantizerAgain(quantizer: Quantizer) {
    #expect(QuantizerText.quantizer(QuantizerText.text(quantizer)) == quantizer)
  }

  @Test(arguments: [
    "", "int8", "int9 token", "int8 row", "int8 token shiny", "int8 block:0", "int8 block:-1",
    "int8 block:99999999999999999999", "int8 block:4611686018427387904", "int4Progressive token",
    "int4Progressive 0x1", "int4Progressive 32x", "int4Progressive 1x2x3",
  ])
  func otherTextsAreRefused(text: String) {
    #expect(QuantizerText.quantizer(text) == nil)
  }
}
