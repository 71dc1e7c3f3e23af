import ArgumentParser
import IntFlashAttention

/// The numbers of the formula.
struct MathOptions: ParsableArguments {
  @Option(
    help: ArgumentHelp(
      "Factor of query · key before the softmax; 1/√D unless given.",
      valueName: "x"
    )
  )
  var softmaxScale: Float?

  @Option(
    help: ArgumentHelp("Replace a logit x by CAP · tanh(x / CAP).", valueName: "cap")
  )
  var softcap: Float?

  func validate() throws {
    if let softmaxScale, !softmaxScale.isFinite {
      throw ValidationError("--softmax-scale is \(softmaxScale); it must be finite")
    }
    if let softcap, !(softcap.isFinite && softcap > 0) {
      throw ValidationError("--softcap is \(softcap); it must be positive and finite")
    }
  }
}
