import ArgumentParser
import IntFlashAttention

/// The element types that tensors may have on the command line.
enum OperandType: String, ExpressibleByArgument, CaseIterable {
  case float32, float16, bfloat16

  var elementType: ElementType {
    switch self {
    case .float32: .float32
    case .float16: .float16
    case .bfloat16: .bfloat16
    }
  }
}
